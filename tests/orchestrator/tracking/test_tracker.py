"""The tracker against real SQLite databases: what it stores, and how a restart continues."""

import json
import logging
import math
import shutil
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.description import TrackedDataset, resolve_uri
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.stores import PATIENCE, description, history, only_run, sqlite, until


@pytest.fixture(autouse=True)
def _warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="orchestrator")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new database, to be copied: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(sqlite(folder)).search_experiments()
    return folder / "store"


@pytest.fixture
def client(tmp_path: Path, empty_store: Path) -> MlflowClient:
    """A client of this test's own database, which a tracker opens as `sqlite(tmp_path)`."""
    shutil.copytree(empty_store, tmp_path / "store")
    return MlflowClient(sqlite(tmp_path))


def test_everything_about_a_run_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = {f"key_{i}": i for i in range(150)}
    digest = "0123456789abcdef" * 4
    packed = {"min_probability": 0.1, "hard": True}
    tracker = Tracker(
        description(
            sqlite(tmp_path),
            job={"seed": 0, "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999]}, "note": "x" * 7000, "none": None, **many}
            | {"uri": "https://u:hunter2@h/x", "password": "hunter2"},
            job_yaml="uri: https://u:hunter2@h/x\n",
            tags={"owner": "me", "odd key %": "1", "hf_token": "hunter2"},
            datasets=[
                TrackedDataset(
                    "train",
                    "digits/train",
                    "gs://bucket/train",
                    digest,
                    1437,
                    10,
                    {"min_probability": 0.1, "hard": True},
                ),
                TrackedDataset("eval", "digits/test", "https://u:hunter2@h/x", digest, 360, 10),
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
    assert tracker.run_id is not None
    assert run.info.run_id == tracker.run_id
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    assert run.info.end_time >= run.info.start_time

    assert len(run.data.params) == 157
    expected = {
        "seed": "0",
        "optimizer.lr": "0.0003",
        "optimizer.betas": "[0.9, 0.999]",
        "none": "null",
        "key_149": "149",
    }
    assert expected.items() <= run.data.params.items()
    assert run.data.params["note"] == "x" * 6000
    assert {
        "owner": "me",
        "odd key _": "1",
        "vit.run_key": "/runs/digits",
        "vit.attempt": "1",
    }.items() <= run.data.tags.items()
    assert {"code.digest", "python", "package.torch"} <= run.data.tags.keys()

    for i in range(2, 10):
        assert history(client, tracker.run_id, f"train/m{i}") == [(step, step * 10.0 + i) for step in range(300)]
    assert math.isnan(dict(history(client, tracker.run_id, "train/m0"))[300])
    assert dict(history(client, tracker.run_id, "train/m1"))[300] > 1e308

    inputs = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    assert inputs["digits/train"].dataset.digest == digest[:36]
    assert inputs["digits/train"].dataset.source_type == "gs"
    profile = {"num_rows": 1437, "num_classes": 10, "about": packed}
    assert json.loads(inputs["digits/train"].dataset.profile) == profile
    assert json.loads(inputs["digits/test"].dataset.profile) == {"num_rows": 360, "num_classes": 10}
    assert {tag.key: tag.value for tag in inputs["digits/train"].tags} == {
        "mlflow.data.context": "train",
        "digest": digest,
    }
    assert {tag.key: tag.value for tag in inputs["digits/test"].tags}["mlflow.data.context"] == "eval"

    stored = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (stored / "job.yaml").read_text() == "uri: https://u:REDACTED@h/x\n"
    assert "torch==" in (stored / "requirements.txt").read_text()
    assert (tmp_path / "store" / "artifacts" / tracker.run_id / "artifacts" / "job.yaml").exists(), (
        "beside the database"
    )
    assert list((tmp_path / "spool").iterdir()) == []
    assert caplog.messages == [], "a healthy store has nothing to say"
    for file in (tmp_path / "store").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), "credentials have no place in MLflow"


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
        "tracking: text = 'no number' at step 40 is not a number and was left out"
    ]


def test_a_spool_with_lines_of_somebody_else(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is left out with one warning, and holds up nothing."""
    lines = [
        '{"time":1,"step":1,"metrics":{"loss":1.5}}',
        *("[1, 2]", "null", "7", '{"time":1}', '{"time":1,"step":1,"metrics":[1]}', "not JSON", "[" * 100_000),
        '{"time":1,"step":1e400,"metrics":{"loss":1}}',
        '{"time":1,"step":99999999999999999999,"metrics":{"loss":1}}',
        '{"time":-1,"step":2,"metrics":{"loss":1}}',
        '{"time":1,"step":2,"metrics":{"loss":{"py/object":"os.system"}}}',
        '{"time":2,"step":2,"metrics":{"loss":2.5}}',
    ]
    tracker = Tracker(description(sqlite(tmp_path), run_key="other"), spool_dir=tmp_path)
    (path,) = [tracker._queue.path]
    assert tracker.close(timeout=PATIENCE)
    path.write_text("\n".join(lines) + "\n")
    caplog.clear()
    second = Tracker(description(sqlite(tmp_path), run_key="other"), spool_dir=tmp_path)
    second.log(3, {"loss": 3.5})
    assert second.close(timeout=PATIENCE)
    assert history(client, second.run_id, "loss") == [(1, 1.5), (2, 2.5), (3, 3.5)]
    assert len(caplog.messages) == len(lines) - 2
    assert all("was left out" in message and "\n" not in message for message in caplog.messages)


def test_files_beside_the_run_are_stored_with_it(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a folder inside the run's; what a spool says of others, or of one that is gone, is left out."""
    run = tmp_path / "run"
    (run / "profile" / "steps-1").mkdir(parents=True)
    (run / "profile" / "steps-1" / "summary.md").write_text("first")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("hunter2")
    tracker = Tracker.beside(description(sqlite(tmp_path)), str(run), system_seconds=None)
    tracker.attach("profile/steps-1")
    assert tracker.flush(PATIENCE)
    (run / "profile" / "steps-1" / "summary.md").write_text("second")
    for folder in ("profile/steps-1", "../secret", str(tmp_path / "secret"), "profile/gone"):
        tracker.attach(folder)
    tracker.log(1, {"loss": 0.5})
    assert tracker.close(timeout=PATIENCE)
    (tmp_path / "stored").mkdir()
    stored = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path / "stored")))
    assert (stored / "profile" / "steps-1" / "summary.md").read_text() == "second"
    assert {path.name for path in stored.rglob("*") if path.is_file()} == {"job.yaml", "requirements.txt", "summary.md"}
    assert history(client, tracker.run_id, "loss") == [(1, 0.5)], "the metrics are there whatever becomes of files"
    assert (
        sum("profile/gone were not stored with the run: they are gone" in message for message in caplog.messages) == 1
    )
    assert (run / "profile" / "steps-1" / "summary.md").exists()


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


def test_the_connection_waits_for_the_first_step(tmp_path: Path, client: MlflowClient) -> None:
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path, begin_seconds=PATIENCE)
    tracker.log(1, {"loss": 0.5})
    time.sleep(0.5)
    assert tracker.run_id is None
    tracker.begin()
    assert tracker.flush(PATIENCE)
    assert history(client, tracker.run_id, "loss") == [(1, 0.5)]
    assert tracker.close(timeout=PATIENCE)


def test_a_run_that_ends_before_its_first_step_is_stored(tmp_path: Path, client: MlflowClient) -> None:
    tracker = Tracker(description(sqlite(tmp_path)), spool_dir=tmp_path, begin_seconds=10 * PATIENCE)
    tracker.log(0, {"loss": 0.5})
    assert tracker.close(timeout=PATIENCE)
    assert history(client, tracker.run_id, "loss") == [(0, 0.5)]


def test_how_to_look_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    tracker = Tracker(description("sqlite:///runs/mlflow.db"), spool_dir=tmp_path)
    database = f"sqlite:///{tmp_path}/runs/mlflow.db"
    program = Path(sys.executable).parent / "mlflow"
    assert tracker.url_hint() == f"{program} server --backend-store-uri {database} --host 127.0.0.1 --port 5000"
    assert tracker.close(timeout=PATIENCE)
    assert (tmp_path / "runs" / "mlflow.db").exists()
