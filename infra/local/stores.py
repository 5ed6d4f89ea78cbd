"""Object stores and a web server on this machine, each on a free port, and a proxy that injects faults.

Each server is a context manager that yields a `Server`: the URL to put before a path, and the environment variables
with which any process reaches it. `reached_by` sets these variables in this process, for the file systems that are
opened inside the block. A `FaultyProxy` sits between a client and one of these servers; a seed decides its faults.

The emulators come with requirements-dev.txt: gcp-storage-emulator for `gcs_server`, moto for `s3_server`.
"""

import asyncio
import contextlib
import datetime
import functools
import http.server
import ipaddress
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import aiohttp
import fsspec
from aiohttp import web

HOST = "127.0.0.1"
BUCKET = "bucket"
GCS_ENVIRONMENT = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true", "no_proxy": "127.0.0.1"}
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "no_proxy": "127.0.0.1",
}
TRUNCATED_FROM = 512  # bytes: shorter bodies are passed whole, because little would be left of them


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: prefix of everything it serves, without a final slash: "gs://bucket", "http://127.0.0.1:8080".
        endpoint: the server's own address.
        environment: variables with which a process reaches the server.
    """

    url: str
    endpoint: str
    environment: dict[str, str]

    def through(self, endpoint: str) -> "Server":
        """The same content, reached through `endpoint`, the address of a proxy."""
        changed = {name: value.replace(self.endpoint, endpoint) for name, value in self.environment.items()}
        return replace(self, url=self.url.replace(self.endpoint, endpoint), endpoint=endpoint, environment=changed)


@contextmanager
def gcs_server() -> Iterator[Server]:
    """An emulator of Google Cloud Storage, in memory, with the bucket `gs://bucket`."""
    port = free_port()
    endpoint = f"http://{HOST}:{port}"
    words = ["gcp_storage_emulator", "start", f"--host={HOST}", f"--port={port}", "--in-memory"]
    with _process([*words, f"--default-bucket={BUCKET}"], port):
        yield Server(f"gs://{BUCKET}", endpoint, {"STORAGE_EMULATOR_HOST": endpoint, **GCS_ENVIRONMENT})


@contextmanager
def s3_server() -> Iterator[Server]:
    """Moto's S3, with the bucket `s3://bucket`."""
    port = free_port()
    endpoint = f"http://{HOST}:{port}"
    server = Server(f"s3://{BUCKET}", endpoint, {"AWS_ENDPOINT_URL": endpoint, **S3_ENVIRONMENT})
    with _process(["moto.server", f"-H{HOST}", f"-p{port}"], port):
        with reached_by(server):
            fsspec.filesystem("s3").mkdir(BUCKET)
        yield server


@contextmanager
def file_server(
    folder: Path | str, tls: bool = False, ranges: bool = True, rate: float | None = None
) -> Iterator[Server]:
    """Serves a folder over http or https, without access control.

    Args:
        tls: use https, with a self-signed certificate.
        ranges: answer ranged requests. If false, every answer is the whole file, as Python's http.server does it.
        rate: bytes a second of an answer, without `ranges`; None: no limit.
    """
    port, scheme = free_port(), "https" if tls else "http"
    endpoint = f"{scheme}://{HOST}:{port}"
    certificate = Path(folder) / ".certificate.pem"
    context: ssl.SSLContext | None = None
    if tls:
        certificate.write_bytes(_certificate())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = Server(endpoint, endpoint, {"SSL_CERT_FILE": str(certificate)} if tls else {})
    if ranges:
        application = web.Application()
        application.router.add_static("/", str(folder), show_index=True)
        with _Loop() as loop:
            runner = loop.run(_serve(application, port, context))
            yield server
            loop.run(runner.cleanup())
        return
    handler = functools.partial(_WholeFiles, directory=str(folder), rate=rate)
    with http.server.ThreadingHTTPServer((HOST, port), handler) as whole:
        if context is not None:
            whole.socket = context.wrap_socket(whole.socket, server_side=True)
        threading.Thread(target=whole.serve_forever, daemon=True).start()
        yield server
        whole.shutdown()


class FaultyProxy:
    """A proxy of the server `target`: some requests fail, some stall, some answers are cut short.

    A context manager; its `server` is the target as reached through the proxy.

    Args:
        seed: of the faults.
        fail: share of requests that are answered 503 and not forwarded.
        stall: share of GET requests whose answer stops at its beginning or in its middle and never continues.
        truncate: share of GET requests whose connection closes before the stated length.
        shorten: share of ranged requests whose answer lacks its end and states the shorter length.
        delay: seconds added to every request.

    Attributes:
        counts: requests by outcome: "passed", "fail", "stall", "truncate", "shorten".
        bytes_sent: bytes of content sent to the client.
    """

    def __init__(
        self,
        target: Server,
        seed: int = 0,
        *,
        fail: float = 0.0,
        stall: float = 0.0,
        truncate: float = 0.0,
        shorten: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.bytes_sent = 0
        self._target, self._random = target.endpoint, random.Random(seed)
        self.set(fail=fail, stall=stall, truncate=truncate, shorten=shorten, delay=delay)
        self._loop = _Loop()
        self._port = free_port()
        self.server = target.through(f"http://{HOST}:{self._port}")

    def __enter__(self) -> Self:
        application = web.Application(client_max_size=1 << 40)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._loop.__enter__()
        self._client = self._loop.run(_client())
        self._runner = self._loop.run(_serve(application, self._port, None))
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.run(self._runner.cleanup())
        self._loop.run(self._client.close())
        self._loop.__exit__(*exception)

    def set(
        self,
        *,
        fail: float = 0.0,
        stall: float = 0.0,
        truncate: float = 0.0,
        shorten: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        """Replaces all shares and the delay, from the next request on."""
        self._shares = {"fail": fail, "stall": stall, "truncate": truncate, "shorten": shorten}
        self._delay = delay

    def _fate(self, method: str, ranged: bool) -> str:
        possible = {"fail": True, "stall": method == "GET", "truncate": method == "GET", "shorten": ranged}
        draw = self._random.random()
        for fate, share in self._shares.items():
            if draw < share:
                return fate if possible[fate] else "passed"
            draw -= share
        return "passed"

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        fate = self._fate(request.method, "Range" in request.headers)
        await asyncio.sleep(self._delay)
        if fate == "fail":
            self.counts[fate] += 1
            await request.read()  # the connection can then be used again
            return web.Response(status=503, text="try again")
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        async with self._client.request(
            request.method,
            self._target + request.raw_path,
            headers=headers,
            data=body or None,
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        if fate in ("truncate", "shorten") and len(content) < TRUNCATED_FROM:
            fate = "passed"
        self.counts[fate] += 1
        if fate == "stall" and self._random.random() < 0.5:
            await asyncio.sleep(3600)  # longer than the client waits
        response.content_length = int(answer.headers.get("Content-Length", len(content)))
        if fate != "passed":
            content = content[: self._random.randrange(len(content) + 1) // 2]
        if fate == "shorten":
            response.content_length = len(content)
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(content)
            self.bytes_sent += len(content)
        if fate == "stall":
            await asyncio.sleep(3600)
        if fate == "truncate":
            assert request.transport is not None
            request.transport.close()
        return response


@contextmanager
def reached_by(server: Server) -> Iterator[str]:
    """Inside the block, this process's file systems reach `server`. Yields its URL."""
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    _forget_file_systems()
    try:
        yield server.url
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _forget_file_systems()


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _forget_file_systems() -> None:
    """Clears fsspec's cache of file systems: it does not know that they depend on environment variables."""
    for protocol in ("gs", "s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@contextmanager
def _process(words: list[str], port: int) -> Iterator[None]:
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} does not listen on port {port}")
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


class _Loop:
    """An event loop in a thread of its own. Leaving the block cancels its tasks and ends the thread."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _serve(application: web.Application, port: int, context: ssl.SSLContext | None) -> web.AppRunner:
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, HOST, port, ssl_context=context).start()
    return runner


async def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(auto_decompress=False)


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer that describe its content, without those that describe the connection."""
    hop = {"connection", "transfer-encoding", "keep-alive", "content-length"}
    return {name: value for name, value in headers.items() if name.lower() not in hop}


class _WholeFiles(http.server.SimpleHTTPRequestHandler):
    """Answers every request with the whole file, at `rate` bytes a second if given."""

    def __init__(self, *words: Any, rate: float | None, **options: Any) -> None:
        self._rate = rate
        super().__init__(*words, **options)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with contextlib.suppress(ConnectionError):  # the client may close early
            while content := source.read(64 << 10):
                outputfile.write(content)
                time.sleep(len(content) / self._rate if self._rate else 0)

    def log_message(self, *words: object) -> None:
        pass


def _certificate() -> bytes:
    """A key and a self-signed certificate for 127.0.0.1, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
