"""The tracker against real stores: SQLite databases, and an `mlflow server` that comes late, is killed, and comes back."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.tracking import RunDescription, TrackedDataset, Tracker, resolve_uri

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not running until a test starts it; then the following tests of this file find it running."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(sqlite(tmp_path))


# ---- a database ----


def test_everything_about_a_run_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = {f"key_{i}": i for i in range(150)}
    digest = "0123456789abcdef" * 4
    tracker = Tracker(
        description(
            sqlite(tmp_path),
            job={"seed": 0, "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999]}, "note": "x" * 7000, "none": None, **many},
            tags={"owner": "me", "odd key %": "1"},
            datasets=[
                TrackedDataset("train", "digits/train", "gs://bucket/train", digest, 1437, 10),
                TrackedDataset("eval", "digits/test", str(tmp_path), digest, 360, 10),
            ],
        ),
        spool_dir=tmp_path / "spool",
    )
    for step in range(300):
        tracker.log(step, {f"train/m{i}": step * 10.0 + i for i in range(10)})
    tracker.log(300, {"train/m0": math.nan, "train/m1": math.inf})
    assert tracker.close(timeout=PATIENCE)

    client = MlflowClient(sqlite(tmp_path))
    run = only_run(client)
    assert run.info.run_id == tracker.run_id
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    assert run.info.end_time >= run.info.start_time

    assert len(run.data.params) == 155
    expected = {"seed": "0", "optimizer.lr": "0.0003", "optimizer.betas": "[0.9, 0.999]", "none": "null", "key_149": "149"}
    assert expected.items() <= run.data.params.items()
    assert run.data.params["note"] == "x" * 6000
    assert {"owner": "me", "odd key _": "1", "vit.run_key": "/runs/digits", "vit.attempt": "1"}.items() <= run.data.tags.items()
    assert {"code.digest", "python", "package.torch"} <= run.data.tags.keys()

    for i in range(2, 10):
        assert history(client, tracker.run_id, f"train/m{i}") == [(step, step * 10.0 + i) for step in range(300)]
    assert math.isnan(dict(history(client, tracker.run_id, "train/m0"))[300])
    assert dict(history(client, tracker.run_id, "train/m1"))[300] > 1e308

    inputs = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    assert inputs["digits/train"].dataset.digest == digest[:36]
    assert inputs["digits/train"].dataset.source_type == "gs"
    assert "1437" in inputs["digits/train"].dataset.profile
    assert {tag.key: tag.value for tag in inputs["digits/train"].tags} == {
        "mlflow.data.context": "train",
        "digest": digest,
    }
    assert {tag.key: tag.value for tag in inputs["digits/test"].tags}["mlflow.data.context"] == "eval"

    stored = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (stored / "job.yaml").read_text() == "seed: 0\n"
    assert "torch==" in (stored / "requirements.txt").read_text()
    assert (tmp_path / "store" / "artifacts" / tracker.run_id / "artifacts" / "job.yaml").exists(), "beside the database"
    assert list((tmp_path / "spool").iterdir()) == []
    assert caplog.messages == [], "a healthy store has nothing to say"


def test_a_restart_continues_the_run_without_repeating_a_point(tmp_path: Path) -> None:
    """The second process replays steps 50 to 99 from its checkpoint, with another learning rate, seconds later."""
    first = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path, system_seconds=0.1)
    for step in range(100):
        first.log(step, {"loss": step + 0.25, "lr": 1.0})
    first.log(90, {"eval/accuracy": 0.9})
    assert first.flush(PATIENCE)
    client = MlflowClient(sqlite(tmp_path))
    until(lambda: len(history(client, first.run_id, "system/cpu_utilization_percentage")) >= 2)
    assert first.close("FAILED", timeout=PATIENCE)
    assert only_run(client).info.status == "FAILED"

    changed = {"seed": 0, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]}, "model": {"init_from": None, "pool": "gap"}}
    second = Tracker(
        description(sqlite(tmp_path), job=changed, job_yaml="seed: 0 # again\n"), spool_dir=tmp_path, system_seconds=0.1
    )
    for step in range(50, 150):
        second.log(step, {"loss": step + 0.75, "lr": 1.0})
        if step in (90, 120):
            second.log(step, {"eval/accuracy": 0.95})
    assert second.flush(PATIENCE)
    assert only_run(client).info.status == "RUNNING"
    before = len(history(client, second.run_id, "system/cpu_utilization_percentage"))
    until(lambda: len(history(client, second.run_id, "system/cpu_utilization_percentage")) > before)
    assert second.close(timeout=PATIENCE)

    run = only_run(client)
    assert first.run_id == second.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    loss = [(step, step + 0.25) for step in range(100)] + [(step, step + 0.75) for step in range(100, 150)]
    assert history(client, run.info.run_id, "loss") == loss
    assert history(client, run.info.run_id, "eval/accuracy") == [(90, 0.9), (120, 0.95)]
    steps = [step for step, _ in history(client, run.info.run_id, "system/cpu_utilization_percentage")]
    assert steps == sorted(set(steps))

    assert run.data.params["optimizer.lr"] == "0.0003", "a parameter cannot change"
    assert run.data.params["model.pool"] == "gap", "but a new one can come"
    assert run.data.tags["attempt.2.optimizer.lr"] == "0.001"
    assert run.data.tags["vit.attempt"] == "2"
    assert [tag for tag in run.data.tags if tag.startswith("attempt.")] == ["attempt.2.optimizer.lr"]
    stored = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (stored / "job.yaml").read_text() == "seed: 0\n"
    assert (stored / "attempts" / "2" / "job.yaml").read_text() == "seed: 0 # again\n"


def test_runs_with_other_keys_are_other_runs(tmp_path: Path, client: MlflowClient) -> None:
    ids = set()
    for key in ("/runs/a", "/runs/it's", "/runs/a"):
        tracker = Tracker(description(sqlite(tmp_path), run_key=key), spool_dir=tmp_path)
        assert tracker.close(timeout=PATIENCE)
        ids.add(tracker.run_id)
    assert len(ids) == 2


def test_a_refused_point_costs_only_itself(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path)
    for step in range(40):
        tracker.log(step, {"good": step, "bad%": step} if step in (7, 8) else {"good": step})
    tracker.log(40, {"good": 40.0, "text": "no number"})  # type: ignore[dict-item]
    assert tracker.close(timeout=PATIENCE)
    assert history(client, tracker.run_id, "good") == [(step, float(step)) for step in range(41)]
    refused = [message for message in caplog.messages if "bad%" in message]
    assert len(refused) == 2
    assert [message for message in caplog.messages if message not in refused] == [
        "tracking: text = 'no number' at step 40 is no number and was left out"
    ]


def test_an_artifact_store_out_of_reach_costs_only_the_files(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    client.create_experiment("vit", artifact_location=f"file://{tmp_path}/file/artifacts")
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path / "spool")
    tracker.log(1, {"loss": 0.5})
    assert tracker.close(timeout=PATIENCE)
    assert history(client, tracker.run_id, "loss") == [(1, 0.5)]
    assert only_run(client).info.status == "FINISHED"
    assert sum("were not stored with the run" in message for message in caplog.messages) == 1


def test_a_run_deleted_in_the_browser_is_followed_by_a_new_one(tmp_path: Path, client: MlflowClient) -> None:
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path)
    tracker.log(1, {"loss": 1.0})
    assert tracker.flush(PATIENCE)
    deleted = tracker.run_id
    assert deleted is not None
    client.delete_run(deleted)
    tracker.log(2, {"loss": 2.0})
    assert tracker.close(timeout=PATIENCE)
    assert tracker.run_id != deleted
    assert history(client, tracker.run_id, "loss") == [(2, 2.0)]
    assert only_run(client).data.params["seed"] == "0", "the new run is described like the first"


def test_how_to_look_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    tracker = Tracker(description("sqlite:///runs/mlflow.db"), spool_dir=tmp_path)
    database = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracker.url_hint() == f"mlflow server --backend-store-uri {database} --host 127.0.0.1 --port 5000"
    assert tracker.close(timeout=PATIENCE)
    assert (tmp_path / "runs" / "mlflow.db").exists()


# ---- a server ----


def test_a_server_that_is_absent_to_the_end(tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    """The points wait in a file, and the next tracker of the run delivers them before its own, here to another store."""
    nowhere = f"http://user:secret@127.0.0.1:{free_port()}"
    first = Tracker(description(nowhere), spool_dir=tmp_path)
    for step in range(100):
        first.log(step, {"loss": step + 0.25})
    until(lambda: "is away" in caplog.text)
    assert first.run_id is None
    assert not first.close(timeout=0.5)
    away, waiting = caplog.messages
    assert "training goes on" in away
    assert "100 records wait in" in waiting
    assert "secret" not in caplog.text + first.url_hint()
    (spool,) = tmp_path.glob("tracking-*.jsonl")

    second = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path)
    for step in range(80, 120):
        second.log(step, {"loss": step + 0.75})
    assert second.close(timeout=PATIENCE)
    expected = [(step, step + 0.25) for step in range(100)] + [(step, step + 0.75) for step in range(100, 120)]
    assert history(client, second.run_id, "loss") == expected
    assert not spool.exists()


def test_a_server_that_comes_late_and_is_killed_and_comes_back(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(description(server.uri), spool_dir=tmp_path, system_seconds=0.2)
    for step in range(100):
        tracker.log(step, {"loss": step + 0.5})
    assert not tracker.flush(0.5)
    assert tracker.run_id is None

    server.start()
    assert tracker.flush(PATIENCE)
    assert tracker.run_id is not None
    assert tracker.url_hint().startswith(f"{server.uri}/#/experiments/")
    assert tracker.url_hint().endswith(f"/runs/{tracker.run_id}")

    stop = threading.Event()
    logged = []

    def train() -> None:
        """Logs all the time, while the server dies and rises."""
        step = 100
        while not stop.wait(0.005):
            tracker.log(step, {"loss": step + 0.5})
            logged.append(step)
            step += 1

    training = threading.Thread(target=train)
    training.start()
    until(lambda: len(logged) > 50)
    server.kill()
    until(lambda: len(logged) > 200)
    server.start()
    until(lambda: len(logged) > 300)
    stop.set()
    training.join()
    assert tracker.close(timeout=PATIENCE)

    client = MlflowClient(server.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.0003"
    assert run.data.tags["vit.attempt"] == "1"
    assert history(client, tracker.run_id, "loss") == [(step, step + 0.5) for step in [*range(100), *logged]]
    assert "job.yaml" in {each.path for each in client.list_artifacts(tracker.run_id)}
    away, back = caplog.messages[0::2], caplog.messages[1::2]
    assert len(away) == len(back) >= 2, "once when it goes, once when it comes"
    assert all("is away; training goes on" in message and "Connection refused" in message for message in away[:1])
    assert all("is back" in message for message in back)


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


def test_a_batch_that_was_applied_although_its_answer_was_lost(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    proxy = Proxy(server.port)
    tracker = Tracker(description(proxy.uri, experiment="lost answers"), spool_dir=tmp_path)
    tracker.log(0, {"loss": 0.5})
    assert tracker.flush(PATIENCE)
    proxy.deaf.set()
    for step in range(1, 50):
        tracker.log(step, {"loss": step + 0.5})
    assert proxy.unanswered.wait(PATIENCE)
    for step in range(50, 60):
        tracker.log(step, {"loss": step + 0.5})
    time.sleep(1.0)  # what was applied in silence has been
    proxy.deaf.clear()
    assert tracker.close(timeout=PATIENCE)
    proxy.close()
    client = MlflowClient(server.uri)
    assert history(client, tracker.run_id, "loss") == [(step, step + 0.5) for step in range(60)]
    assert only_run(client, "lost answers").data.tags["vit.attempt"] == "1"


def test_a_server_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that accepts and never answers: log and flush return, close gives up, and the points are on disk."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(description(f"http://127.0.0.1:{silent.getsockname()[1]}"), spool_dir=tmp_path)
        connection, _ = silent.accept()  # the tracker is now waiting for an answer
        with connection:
            for step in range(1000):
                tracker.log(step, {"loss": 1.0})
            assert not tracker.flush(0.1)
            assert tracker.run_id is None
            assert not tracker.close("KILLED", timeout=0.1)
    (spool,) = tmp_path.glob("tracking-*.jsonl")
    assert len(spool.read_text().splitlines()) == 1000
    assert "1000 records wait in" in caplog.messages[-1]
    tracker.log(1000, {"loss": 1.0})
    assert "closed" in caplog.messages[-1]


def test_a_training_process_killed_while_the_server_is_away(tmp_path: Path, client: MlflowClient) -> None:
    """kill -9 loses no point that was logged a moment before; the process that resumes the run delivers them."""
    program = (
        "import sys, time; from orchestrator.tracking import RunDescription, Tracker\n"
        "uri, spool = sys.argv[1:]\n"
        "tracker = Tracker(RunDescription(uri, 'vit', 'digits', '/runs/digits', {}, ''), spool_dir=spool)\n"
        "[tracker.log(step, {'loss': step + 0.5}) for step in range(200)]\n"
        "time.sleep(600)"
    )
    nowhere = f"http://127.0.0.1:{free_port()}"
    child = subprocess.Popen([sys.executable, "-c", program, nowhere, str(tmp_path)])
    until(lambda: sum(file.read_bytes().count(b"\n") for file in tmp_path.glob("tracking-*.jsonl")) == 200)
    child.send_signal(signal.SIGKILL)
    child.wait()
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path)
    assert tracker.close(timeout=PATIENCE)
    assert history(client, tracker.run_id, "loss") == [(step, step + 0.5) for step in range(200)]


def test_a_server_on_the_database_of_a_run_shows_its_files(tmp_path: Path, server: Server) -> None:
    """What a laptop user sees: the tracker wrote to the database itself, `mlflow server` opens it later."""
    tracker = Tracker(description(server.database, experiment="laptop"), spool_dir=tmp_path)
    tracker.log(1, {"loss": 0.5})
    assert tracker.close(timeout=PATIENCE)
    page = f"{server.uri}/get-artifact?path=job.yaml&run_uuid={tracker.run_id}"
    with urllib.request.urlopen(page, timeout=PATIENCE) as answer:
        assert answer.read() == b"seed: 0\n"
    assert history(MlflowClient(server.uri), tracker.run_id, "loss") == [(1, 0.5)]


@pytest.fixture(autouse=True)
def _warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="orchestrator")
