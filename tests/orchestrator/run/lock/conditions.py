"""A proxy of an emulator of Google Cloud Storage: it enforces `ifGenerationMatch=0`, which the emulator ignores."""

import http.server
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from infra.local.stores import HOST, Server

CREATING = threading.Lock()


@contextmanager
def enforcing(target: Server) -> Iterator[Server]:
    """The same content; an upload with the condition is answered 412 if the object exists."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "ifGenerationMatch=0" in self.path:
                with CREATING:
                    self.answer(*(refused if (refused := self.refusal(body)) else self.pass_on(body)))
            else:
                self.answer(*self.pass_on(body))

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = forward

        def refusal(self, body: bytes) -> tuple[int, bytes, str] | None:
            name = body.split(b'"name": "', 1)[1].split(b'"', 1)[0].decode()
            bucket = urllib.parse.urlsplit(self.path).path.split("/b/")[1].split("/")[0]
            where = f"{target.endpoint}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
            try:
                urllib.request.urlopen(where).read()
            except urllib.error.HTTPError:
                return None
            return 412, b'{"error": {"code": 412, "message": "conditionNotMet"}}', "application/json"

        def pass_on(self, body: bytes) -> tuple[int, bytes, str]:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            request = urllib.request.Request(target.endpoint + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read(), answer.headers.get("Content-Type", "")
            except urllib.error.HTTPError as error:
                return error.code, error.read(), error.headers.get("Content-Type", "")

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield target.through(f"http://{HOST}:{server.server_address[1]}")
        server.shutdown()
