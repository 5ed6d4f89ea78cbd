"""Points that MLflow missed reach it in the end: after the run, and after the loss of the node where they waited."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data import open_index, storage
from infra.local.stores import reached_by, s3_server
from orchestrator.__main__ import main
from orchestrator.job.kinds import PretrainJob
from orchestrator.job.load import load_job
from orchestrator.run.folder import open_run, run_url
from orchestrator.run.paths import absolute
from orchestrator.run.summary import write_summary
from orchestrator.run.totals import Totals
from orchestrator.run.training_set import open_training_set
from orchestrator.tracking import catch_up, spool_copies
from orchestrator.tracking.description import describe_run
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.stores import (
    PATIENCE,
    Server,
    description,
    free_port,
    history,
    only_run,
    sqlite,
    until,
)
from tests.paths import ROOT

DIGITS = ROOT / "jobs" / "pretrain_digits.yaml"
STEPS = 6000
PROFILE = "profile/steps-000010-000015"


def logged(step: int) -> dict[str, float]:
    return {"train/loss": step + 0.5, "train/learning_rate": 1.0}


@pytest.mark.cluster
def test_absent_for_the_whole_run_and_delivered_by_the_next_call(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's first process is killed, its second ends without MLflow; so does a first call afterwards. The call
    that reaches MLflow is killed in mid-delivery, and the one after it completes the work."""
    server = Server(tmp_path)
    words = {
        "name": "away",
        "schedule.length.steps": STEPS,
        "checkpoint.url": tmp_path,
        "tracking.uri": server.uri.replace("://", "://me:${TRACKER_PASSWORD}@"),
        "data.pack": "null",
        "data.train.url": digits / "train",
        "data.eval.test.url": digits / "test",
    }
    monkeypatch.setenv("TRACKER_PASSWORD", "hunter2")
    overrides = [f"{key}={value}" for key, value in words.items()]
    command = ["run", str(DIGITS), *(word for override in overrides for word in ("--set", override))]

    first, second = range(STEPS // 2), range(STEPS // 2 - 100, STEPS)
    program = (
        "import sys; from tests.orchestrator.tracking.test_catch_up import rank_0; rank_0(sys.argv[1:], %r, end=False)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program % first, *overrides], cwd=ROOT, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"logged\n"
        child.send_signal(signal.SIGKILL)
    rank_0(overrides, second, end=True)
    summary = tmp_path / "away" / "summary.json"
    monkeypatch.setattr(catch_up, "REACH_SECONDS", 0.2)
    assert main(command) == 0
    assert "run the same command again to retry" in capsys.readouterr().out
    assert json.loads(summary.read_text())["mlflow_run_id"] is None

    server.start()
    client = MlflowClient(server.uri)
    monkeypatch.setattr(catch_up, "REACH_SECONDS", PATIENCE)
    with subprocess.Popen([sys.executable, "-m", "orchestrator", *command], cwd=ROOT) as killed:
        until(lambda: client.get_experiment_by_name("vit") and steps_there(client))
        killed.send_signal(signal.SIGKILL)
    assert steps_there(client) < STEPS, "it was killed too late to show anything"
    assert only_run(client).info.status == "RUNNING"
    assert main(command) == 0
    assert "MLflow now has the whole run" in capsys.readouterr().out

    run = only_run(client)
    for metric, values in (
        ("train/loss", [step + 0.5 for step in range(STEPS)]),
        ("train/learning_rate", [1.0] * STEPS),
    ):
        assert history(client, run.info.run_id, metric) == list(enumerate(values))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "away")
    assert run.data.params["batch_size"] == "64"
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {"train", "test"}
    stored = Path(client.download_artifacts(run.info.run_id, PROFILE, str(tmp_path)))
    assert (stored / "summary.md").read_text() == "a page"
    found = json.loads(summary.read_text())
    assert (found["mlflow_run_id"], found["mlflow_complete"]) == (run.info.run_id, True)
    assert found["mlflow"].endswith(f"/runs/{run.info.run_id}")
    assert not list(tmp_path.glob("away/tracking-*"))

    server.kill()
    assert main(command) == 0
    told = capsys.readouterr()
    assert "MLflow now has the whole run" not in told.out
    assert "retry" not in told.out
    assert json.loads(summary.read_text()) == found
    files = [path for path in (tmp_path / "away").rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in told.out + told.err


def rank_0(overrides: list[str], steps: range, *, end: bool) -> None:
    """What rank 0 of a run does: logs, and ends the run, or waits to be killed once all is on disk."""
    job = absolute(load_job(DIGITS, overrides))
    assert isinstance(job, PretrainJob)
    data = open_training_set(job.data.train, seed=job.seed, batch_size=job.batch_size)
    run_id = open_run(job, data.digest)
    held_out = {"test": open_index(job.data.eval["test"].url)}
    tracker = Tracker.beside(describe_run(job, run_id, data, held_out, workers=1, device="CPU"), run_url(job))
    for step in steps:
        tracker.log(step, logged(step))
    until(lambda: len(tracker._queue.since(0)[0]) >= len(steps))
    if end:
        storage.write_atomic(f"{run_url(job)}/{PROFILE}/summary.md", b"a page")
        tracker.attach(PROFILE)
        assert not tracker.close("FINISHED", timeout=0.1)
        metrics = {"eval/test/loss": 1.0, "eval/test/images": 360.0}  # a complete run has measured its sets
        summary = {
            "step": STEPS,
            "metrics": metrics,
            "images_per_second": 1.0,
            "totals": Totals().to_dict(),
            "workers": 1,
        }
        summary["device"] = {"name": "CPU", "peak_flops": 1.0, "peak_is": "measured"}
        write_summary(run_url(job), {**summary, "mlflow_run_id": None, "mlflow": tracker.url_hint()})
    else:
        print("logged", flush=True)
        signal.pause()


def steps_there(client: MlflowClient) -> int:
    experiment = client.get_experiment_by_name("vit")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return int(runs[0].data.metrics.get("train/loss", 0)) if runs else 0


def test_what_waits_outlives_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in a bucket: the first node is lost behind its checkpoint at step 50, the second ends without MLflow."""
    monkeypatch.setattr(spool_copies, "DRAIN_SECONDS", 0.1)
    nowhere = f"http://127.0.0.1:{free_port()}"

    def node(name: str, uri: str, steps: range) -> Tracker:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        tracker = Tracker.beside(description(uri), f"{bucket}/run", system_seconds=None)
        for step in steps:
            tracker.log(step, {"loss": step + 0.5})
        return tracker

    def copies() -> list[str]:
        return storage.matching(f"{bucket}/run", "tracking-*")

    with s3_server() as server, reached_by(server) as bucket:
        lost = node("first", nowhere, range(50))
        storage.write_atomic(f"{bucket}/run/{PROFILE}/summary.md", b"a page")
        lost.attach(PROFILE)
        until(lambda: len(lost._queue.since(0)[0]) == 51)
        lost.copy_waiting()
        until(lambda: len(copies()) == 1)
        for step in range(50, 60):
            lost.log(step, {"loss": -1.0})  # done again elsewhere, from the checkpoint
        lost._gave_up.set()  # no more of it from here

        second = node("second", nowhere, range(50, 80))
        until(lambda: len(second._queue.since(51)[0]) == 30)
        second.copy_waiting()
        until(lambda: len(copies()) == 2)
        second.log(80, {"loss": 80.5})
        assert not second.close(timeout=0.1)
        assert len(copies()) == 3, "the end copies too"

        third = node("third", sqlite(tmp_path), range(81, 100))
        assert third.flush(PATIENCE)
        third.copy_waiting()
        until(lambda: not copies())
        assert third.close(timeout=PATIENCE)
        assert copies() == []
    client = MlflowClient(sqlite(tmp_path))
    assert history(client, third.run_id, "loss") == [(step, step + 0.5) for step in range(100)]
    assert [each.path for each in client.list_artifacts(third.run_id, PROFILE)] == [f"{PROFILE}/summary.md"]
