"""Real MLflow stores for the tracker's tests: databases, a server that can be killed, a network that loses answers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.tracking.description import RunDescription

PATIENCE = 120.0  # seconds that a loaded machine may need; nothing waits this long on a healthy one


def description(uri: str, **changes: Any) -> RunDescription:
    settings: dict[str, Any] = {
        "uri": uri,
        "experiment": "vit",
        "run_name": "digits",
        "run_key": "/runs/digits",
        "job": {"seed": 0, "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999]}, "model": {"init_from": None}},
        "job_yaml": "seed: 0\n",
    }
    return RunDescription(**(settings | changes))


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder}/store/mlflow.db"


def history(client: MlflowClient, run_id: str | None, name: str) -> list[tuple[int, float]]:
    """(step, value) of every stored point of a metric in the order in which the store keeps them: time, then step."""
    assert run_id is not None
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def only_run(client: MlflowClient, experiment: str = "vit") -> Run:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """An `mlflow server` on one database and one port, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"sqlite:///{folder}/mlflow.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--backend-store-uri", self.database),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        settings = {"HOME": str(self.folder), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )
        until(self._is_up)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        except OSError:
            return False


class Proxy:
    """Forwards connections to a server; while `deaf`, requests still arrive there but no answer comes back."""

    def __init__(self, target: int) -> None:
        self.deaf = threading.Event()
        self.unanswered = threading.Event()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_answer and self.deaf.is_set():
                    self.unanswered.set()
                else:
                    sink.sendall(data)
        except OSError:
            pass  # one side hung up
        finally:
            for end in (source, sink):
                end.close()
