"""infra/preemption.py, with a metadata server that behaves as Google documents it, and a stand-in for `ray`."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import psutil
import pytest

from infra import preemption
from tests.infra import commands


class Metadata(ThreadingHTTPServer):
    """The metadata of an instance. A request waits until they differ from the state of its tag."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.state = {"preempted": "FALSE", "maintenanceEvent": "NONE", "name": "ray-vit-worker-1-compute"}
        self.changed = threading.Condition()
        self.failures = 0  # number of errors before the next good answer
        self.waiting = threading.Event()  # a client waits for a change

    @property
    def tag(self) -> str:
        return f"{hash(tuple(self.state.items())) & 0xFFFFFFFF:x}"

    def change(self, **values: str) -> None:
        with self.changed:
            self.state = {**self.state, **values}
            self.changed.notify_all()


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Metadata

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        server = self.server
        if self.headers["Metadata-Flavor"] != "Google" or url.path != "/computeMetadata/v1/instance/":
            self.send_error(403)
            return
        with server.changed:
            if server.failures:
                server.failures -= 1
                self.send_error(503)
                return
            if query["last_etag"] == server.tag:
                server.waiting.set()
                server.changed.wait_for(lambda: server.tag != query["last_etag"], timeout=int(query["timeout_sec"]))
            body = json.dumps(server.state).encode()
            tag = server.tag
        self.send_response(200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def raylet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A stand-in for Ray's node process, the only visible process; the calls of `ray` are in tmp_path/bin/calls."""
    script = tmp_path / "raylet"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o755)
    words = [str(script), "--raylet_socket_name=s", "--node_id=4e0de", "--gcs-address=10.10.0.2:6379"]
    every = psutil.process_iter
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(commands.stand_ins(tmp_path / "bin", ("ray",))), os.environ["PATH"]])
    )
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        while psutil.Process(process.pid).name() != "raylet":
            time.sleep(0.01)
        monkeypatch.setattr(psutil, "process_iter", lambda *a: (p for p in every(*a) if p.pid == process.pid))
        yield process
        process.kill()


def the_drain(tmp_path: Path) -> dict[str, str]:
    """The options of the only call of `ray`, which Ray's own parser accepts."""
    (call,) = commands.called(tmp_path / "bin")
    assert call[:2] == ["ray", "drain-node"]
    commands.parse(call)
    return dict(zip(call[2::2], call[3::2], strict=True))


def watched(metadata: Metadata, **change: str) -> int:
    """The exit code of `watch`, which gets its notice while it waits."""
    thread = threading.Thread(target=lambda: metadata.waiting.wait(60) and metadata.change(**change))
    thread.start()
    code = preemption.main(["watch", "--grace", "20"])
    thread.join()
    return code


def test_notice_of_a_spot_machine_drains_its_node(metadata: Metadata, raylet: Any, tmp_path: Path) -> None:
    assert watched(metadata, preempted="TRUE") == 0
    options = the_drain(tmp_path)
    assert options["--node-id"] == "4e0de"
    assert options["--address"] == "10.10.0.2:6379"
    assert options["--reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert options["--deadline-remaining-seconds"] == "20"


def test_maintenance_is_a_notice_too(metadata: Metadata, raylet: Any, tmp_path: Path) -> None:
    assert watched(metadata, maintenanceEvent="TERMINATE_ON_HOST_MAINTENANCE") == 0
    assert "TERMINATE_ON_HOST_MAINTENANCE" in the_drain(tmp_path)["--reason-message"]


def test_other_changes_and_server_errors_are_no_notice(metadata: Metadata, raylet: Any, tmp_path: Path) -> None:
    metadata.failures = 2

    def later() -> None:
        metadata.waiting.wait(60)
        assert not commands.called(tmp_path / "bin")
        metadata.waiting.clear()
        metadata.change(name="another")
        metadata.waiting.wait(60)
        assert not commands.called(tmp_path / "bin")
        metadata.change(preempted="TRUE")

    thread = threading.Thread(target=later)
    thread.start()
    assert preemption.main(["watch"]) == 0
    thread.join()
    assert metadata.failures == 0
    the_drain(tmp_path)


def test_drain_returns_when_the_node_has_left(raylet: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Kubernetes stops the pod when the command returns, so it must not return before the workers have left."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (preemption.main(["drain", "--grace", "600"]), done.set()))
    thread.start()
    while not commands.called(tmp_path / "bin"):
        time.sleep(0.05)
    assert not done.wait(1)
    raylet.kill()
    assert done.wait(60)
    thread.join()
    assert the_drain(tmp_path)["--deadline-remaining-seconds"] == "600"


def test_a_node_without_ray_is_an_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda *a: iter(()))
    assert preemption.main(["drain"]) == 1
    assert "no Ray node runs here" in caplog.text


def test_the_exit_code_of_ray_is_returned(raylet: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "ray").write_text("#!/bin/sh\nexit 3\n")
    assert preemption.main(["drain", "--grace", "600"]) == 3
