"""Runs of the digits job as a user starts them: the commands, their workers, and what they leave behind."""

import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

from data import SampleOrder, open_index
from orchestrator.checkpoint.manifest import MANIFEST
from orchestrator.history.ledger import trained_samples
from tests.cluster import Command

JOB = "jobs/pretrain_digits.yaml"
STEPS, EVERY, BATCH = 60, 15, 64


def settings(folder: Path, name: str, *, without: Collection[str] = (), **more: object) -> list[str]:
    """--set words of a short run of the digits job; keys in `without` keep the job file's value."""
    keys: dict[str, object] = {
        "name": name,
        "schedule.length.steps": STEPS,
        "schedule.warmup.steps": 5,
        "model.dropout": 0.1,
        "checkpoint.url": folder,
        "checkpoint.every.steps": EVERY,
        "checkpoint.export": "false",
        "evaluate.every.steps": 30,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "tracking.every.steps": 1,
        "tracking.record_samples": "true",
        "data.pack.to": f"{folder}/digits",
        "data.train.url": f"{folder}/digits/train",
        "data.eval.test.url": f"{folder}/digits/test",
        **more,
    }
    return [word for key, value in keys.items() if key not in without for word in ("--set", f"{key}={value}")]


def command(folder: Path, name: str, **more: object) -> list[str]:
    """The command of such a run."""
    return [sys.executable, "-m", "orchestrator", "run", JOB, *settings(folder, name, **more)]


def wait_for_checkpoint(run: Path, step: int, started: Command) -> None:
    """Wait for a complete checkpoint of a run; fails the test if the run's command ends first."""
    started.wait_until(lambda: list(run.glob(f"step-{step:09d}-*/{MANIFEST}")), f"the checkpoint of step {step}")


def training_workers(ancestor: int) -> list[psutil.Process]:
    """The training workers that descend from a process: from this one, or from the head of a cluster."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
        and any(parent.pid == ancestor for parent in process.parents())
    ]


def history(folder: Path, name: str, metric: str) -> list[tuple[int, float]]:
    """The points of a metric, in the order in which MLflow got them; the run must be the only one of its name."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vit")
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    return [(point.step, point.value) for point in client.get_metric_history(runs[0].info.run_id, metric)]


def assert_every_sample_once_an_epoch(run: Path, folder: Path) -> None:
    """The ledger of a run of `STEPS` steps holds the sample order of the packed digits."""
    samples = trained_samples(str(run))
    assert sorted(samples) == list(range(STEPS))
    order = SampleOrder(open_index(f"{folder}/digits/train"), batch_size=BATCH)
    assert order.steps_per_epoch * 2 < STEPS
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        counts = Counter(sample for step in steps for sample in samples[step])
        assert counts == dict.fromkeys(range(order.num_samples), 1)
    for step, ids in samples.items():
        assert ids == sorted(i for i in order.batch(step) if i >= 0)
