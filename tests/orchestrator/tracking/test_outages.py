"""The tracker when its store is away, slow or deaf: real servers, killed; nothing is lost, and nothing comes twice."""

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.stores import (
    PATIENCE,
    Proxy,
    Server,
    description,
    free_port,
    history,
    only_run,
    sqlite,
    until,
)


@pytest.fixture(autouse=True)
def _warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="orchestrator")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not running until a test starts it; then the following tests of this file find it running."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def test_a_server_that_is_absent_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The points wait in a file, and the run's next tracker delivers them before its own, here to another store."""
    nowhere = f"http://user:secret@127.0.0.1:{free_port()}"
    first = Tracker(description(nowhere), spool_dir=tmp_path)
    for step in range(100):
        first.log(step, {"loss": step + 0.25})
    until(lambda: "cannot reach MLflow at" in caplog.text)
    assert first.run_id is None
    assert not first.close(timeout=0.5)
    away, waiting = caplog.messages
    assert "training continues, metrics are queued in" in away
    assert "100 undelivered records are saved in" in waiting
    assert "secret" not in caplog.text + first.url_hint()
    (spool,) = tmp_path.glob("tracking-*.jsonl")

    second = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path)
    for step in range(80, 120):
        second.log(step, {"loss": step + 0.75})
    assert second.close(timeout=PATIENCE)
    expected = [(step, step + 0.25) for step in range(100)] + [(step, step + 0.75) for step in range(100, 120)]
    assert history(MlflowClient(sqlite(tmp_path)), second.run_id, "loss") == expected
    assert not spool.exists()


@pytest.mark.cluster
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
    assert all("cannot reach MLflow at" in message and "; training continues" in message for message in away)
    assert "Connection refused" in away[0]
    assert all("is back" in message for message in back)


@pytest.mark.cluster
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
    assert "1000 undelivered records are saved in" in caplog.messages[-1]
    tracker.log(1000, {"loss": 1.0})
    assert "closed" in caplog.messages[-1]


def test_a_training_process_killed_while_the_server_is_away(tmp_path: Path) -> None:
    """kill -9 loses no point that was logged a moment before; the process that resumes the run delivers them."""
    program = (
        "import sys, time\n"
        "from orchestrator.tracking.description import RunDescription\n"
        "from orchestrator.tracking.tracker import Tracker\n"
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
    client = MlflowClient(sqlite(tmp_path))
    assert history(client, tracker.run_id, "loss") == [(step, step + 0.5) for step in range(200)]


@pytest.mark.cluster
def test_a_server_on_the_database_of_a_run_shows_its_files(tmp_path: Path, server: Server) -> None:
    """What a laptop user sees: the tracker wrote to the database itself, `mlflow server` opens it later."""
    tracker = Tracker(description(server.database, experiment="laptop"), spool_dir=tmp_path)
    tracker.log(1, {"loss": 0.5})
    assert tracker.close(timeout=PATIENCE)
    page = f"{server.uri}/get-artifact?path=job.yaml&run_uuid={tracker.run_id}"
    with urllib.request.urlopen(page, timeout=PATIENCE) as answer:
        assert answer.read() == b"seed: 0\n"
    assert history(MlflowClient(server.uri), tracker.run_id, "loss") == [(1, 0.5)]
