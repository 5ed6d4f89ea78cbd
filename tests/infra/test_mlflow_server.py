"""MLflow's real server, started by `python -m infra.mlflow_server`."""

import http.client
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.local.stores import HOST, free_port
from infra.mlflow_server import main
from tests.paths import ROOT

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=5"


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path

    def ask(self, method: str, path: str, body: str | None = None, host: str | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. `host` is the Host header, by default the server's address."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        headers = {"Host": host or f"{HOST}:{self.port}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("mlflow") / "runs", free_port()
    words = [sys.executable, "-m", "infra.mlflow_server", "--folder", str(folder), "--port", str(port)]
    words += ["--allowed-hosts", "mlflow.internal:5000"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            running = Server(port, folder)
            deadline = time.monotonic() + 400
            while not answers(running):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield running
        finally:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()


def answers(server: Server) -> bool:
    try:
        return server.ask("GET", "/health")[0] == 200
    except OSError:
        return False


@pytest.mark.cluster
def test_it_serves_the_folders_database_and_files(server: Server) -> None:
    status, body = server.ask("POST", "/api/2.0/mlflow/experiments/create", json.dumps({"name": "vit"}))
    assert status == 200, body
    with sqlite3.connect(server.folder / "mlflow.db") as database:
        names = {name for (name,) in database.execute("SELECT name FROM experiments")}
    assert "vit" in names
    assert server.ask("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/job.yaml", "kind: pretrain")[0] == 200
    assert (server.folder / "artifacts/1/job.yaml").read_text() == "kind: pretrain"


@pytest.mark.cluster
@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "mlflow.internal:5000"])
def test_it_answers_to_its_names(server: Server, host: str) -> None:
    assert server.ask("GET", SEARCH, host=host)[0] == 200


@pytest.mark.cluster
@pytest.mark.parametrize("host", ["evil.example", "10.0.0.5:5000", "mlflow.internal.evil.example:5000"])
def test_it_refuses_other_names(server: Server, host: str) -> None:
    assert server.ask("GET", SEARCH, host=host)[0] == 403


@pytest.mark.cluster
def test_it_listens_on_loopback_only(server: Server) -> None:
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == server.port]
    assert set(listening) == {HOST}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--host", "0.0.0.0", "--port", "5001"], "--allowed-hosts NAME:5001"),
        (["--host", "::"], "--allowed-hosts NAME:5000"),
        (["--host", "0.0.0.0", "--allowed-hosts", "*"], "give the names that clients use"),
    ],
)
def test_access_by_any_name_is_refused(words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert remedy in message
