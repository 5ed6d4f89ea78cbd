"""Files wait until MLflow's artifact store takes them: beside the points, across processes, and never in the way."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import attachments
from orchestrator.tracking.attachments import Attachments
from orchestrator.tracking.spool import SpooledQueue
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.stores import PATIENCE, description, free_port, history, only_run, sqlite, until

PROFILE = "profile/steps-1"
TEXTS = {"job.yaml", "requirements.txt"}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new database, to be copied: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(sqlite(folder)).search_experiments()
    return folder / "store"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """A database of this test's own. Tries of the artifact store are quick."""
    caplog.set_level(logging.WARNING, logger="orchestrator")
    monkeypatch.setattr(attachments, "LONGEST_WAIT", 0.2)
    return Path(shutil.copytree(empty_store, tmp_path / "store"))


@pytest.fixture
def barrier(tmp_path: Path, store: Path) -> Path:
    """A file in the place of the artifact store's folder."""
    barrier = tmp_path / "barrier"
    barrier.write_text("not a folder")
    MlflowClient(sqlite(tmp_path)).create_experiment("vit", artifact_location=f"file://{barrier}/artifacts")
    return barrier


def beside(tmp_path: Path, **changes: Any) -> Tracker:
    run = tmp_path / "run"
    (run / PROFILE).mkdir(parents=True, exist_ok=True)
    (run / PROFILE / "summary.md").write_text("a page")
    return Tracker.beside(description(sqlite(tmp_path), **changes), str(run), system_seconds=None)


def stored(tmp_path: Path) -> dict[str, str]:
    """Content by path of all files that the artifact store holds for the run."""
    root = only_run(MlflowClient(sqlite(tmp_path))).info.artifact_uri.removeprefix("file://")
    return {str(path.relative_to(root)): path.read_text() for path in Path(root).rglob("*") if path.is_file()}


def test_a_store_that_comes_back_gets_the_files(
    tmp_path: Path, barrier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away, points arrive all the same; there is one line when it goes and one when it is back."""
    tracker = beside(tmp_path)
    tracker.log(1, {"loss": 0.5})
    tracker.attach(PROFILE)
    until(lambda: "MLflow's artifact store does not take" in caplog.text)
    tracker.log(2, {"loss": 1.5})
    client = MlflowClient(sqlite(tmp_path))
    until(lambda: len(history(client, tracker.run_id, "loss")) == 2)
    assert not tracker.flush(1.0), "files wait, and were tried several times"
    barrier.unlink()
    assert tracker.flush(PATIENCE)
    assert tracker.close(timeout=PATIENCE)
    assert set(stored(tmp_path)) == TEXTS | {f"{PROFILE}/summary.md"}
    away, back = caplog.messages
    assert away.endswith("; retrying beside training")
    assert "is back" in back
    assert not list((tmp_path / "run").glob("tracking-*"))


def test_the_next_start_delivers_what_the_store_did_not_take(
    tmp_path: Path, barrier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Points and the end of the run are in MLflow. The second start, with other settings, delivers both job files."""
    first = beside(tmp_path)
    first.attach(PROFILE)
    first.log(1, {"loss": 0.5})
    assert not first.close(timeout=PATIENCE)
    assert "MLflow's artifact store does not take profile/steps-1 (NotADirectoryError" in first.trouble
    assert "running the same job again delivers them" in caplog.messages[-1]
    client = MlflowClient(sqlite(tmp_path))
    assert history(client, first.run_id, "loss") == [(1, 0.5)]
    assert only_run(client).info.status == "FINISHED"

    barrier.unlink()
    second = beside(tmp_path, job={"seed": 1}, job_yaml="seed: 0 # again\n")
    assert second.close(timeout=PATIENCE)
    assert second.run_id == first.run_id
    found = stored(tmp_path)
    assert found["job.yaml"] == "seed: 0\n"
    assert found["attempts/2/job.yaml"] == "seed: 0 # again\n"
    assert set(found) == TEXTS | {f"attempts/2/{name}" for name in TEXTS} | {f"{PROFILE}/summary.md"}
    assert not list((tmp_path / "run").glob("tracking-*"))


def test_half_of_the_files_is_completed(tmp_path: Path, barrier: Path) -> None:
    """A store that took job.yaml and then went away lacks requirements.txt, also if other folders are there."""
    tracker = beside(tmp_path)
    tracker.log(1, {"loss": 0.5})
    assert not tracker.close(timeout=PATIENCE)
    barrier.unlink()
    MlflowClient(sqlite(tmp_path)).log_text(tracker.run_id, "seed: 0\n", "job.yaml")
    assert beside(tmp_path).close(timeout=PATIENCE)
    assert set(stored(tmp_path)) == TEXTS


def test_mlflow_away_at_the_start_and_back_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start never reaches MLflow; the second, of the same run, delivers its points and the run's files."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    run = tmp_path / "run"
    first = Tracker.beside(description(nowhere), str(run), system_seconds=None)
    first.log(1, {"loss": 0.5})
    assert not first.close(timeout=0.5)
    second = beside(tmp_path)
    assert second.close(timeout=PATIENCE)
    assert history(MlflowClient(sqlite(tmp_path)), second.run_id, "loss") == [(1, 0.5)]
    assert set(stored(tmp_path)) == TEXTS


def test_strange_records_of_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        '{"folder":"../x","texts":{"job.yaml":"a"}}',
        '{"folder":"x","texts":{"../job.yaml":"a"}}',
        '{"folder":"x","texts":{"job.yaml":5}}',
        '{"folder":"x","texts":["job.yaml"]}',
        '{"texts":{"job.yaml":"a"}}',
        '{"folder":"x","texts":{"job.yaml":"a"}}',
    ]
    tracker = beside(tmp_path)
    path = tracker._queue.path
    assert tracker.close(timeout=PATIENCE)
    path.write_text("\n".join(lines) + "\n")
    assert beside(tmp_path).close(timeout=PATIENCE)
    assert set(stored(tmp_path)) == TEXTS | {"x/job.yaml"}
    assert sum("is damaged and was left out" in message for message in caplog.messages) == 5


def test_what_is_set_aside_stays_in_the_file_and_in_the_copies(tmp_path: Path) -> None:
    queue = SpooledQueue(tmp_path / "spool.jsonl")
    for number in range(3):
        queue.put({"n": number})
    until(lambda: len(queue.peek(9) or []) == 3)
    queue.pop(2, aside=[1])
    assert queue.aside() == {1: {"n": 1}}
    assert queue.since(0) == ([{"n": 1}, {"n": 2}], 3)
    assert queue.since(2) == ([{"n": 2}], 3)
    queue.pop(1)
    assert len(queue) == 1
    assert queue.peek(9, timeout=0.01) is None
    queue.finish()
    assert queue.peek(9) == []
    queue.close()
    assert len((tmp_path / "spool.jsonl").read_text().splitlines()) == 3
    again = SpooledQueue(tmp_path / "spool.jsonl")
    until(lambda: len(again.peek(9) or []) == 3)
    again.pop(3, aside=[1])
    again.discard(1)
    assert again.wait_drained(PATIENCE)
    assert Attachments(again, "", print).seconds() is None
    again.close()
    assert not (tmp_path / "spool.jsonl").exists()
