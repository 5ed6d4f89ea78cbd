"""Whole runs on a real Ray cluster, as a user starts them: to the end, through kills, with other numbers of workers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from data import SampleOrder, open_index, storage
from orchestrator.checkpoint.manifest import MANIFEST
from orchestrator.history.ledger import trained_samples
from infra.local.stores import FaultyProxy, gcs_server, reached_by
from tests.orchestrator.checkpoint.test_restore import weights
from tests.cluster import RayHead
from tests.paths import ROOT

STEPS, EVERY, BATCH = 60, 15, 64
PROFILE = "profile/steps-000010-000012"
TIMEOUT = 1200  # seconds; a busy machine takes a minute to start a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def settings(folder: Path, name: str, **more: object) -> list[str]:
    """--set words of a short run of the digits job."""
    keys: dict[str, object] = {
        "name": name,
        "schedule.length.steps": STEPS,
        "schedule.warmup.steps": 5,
        "model.dropout": 0.1,
        "checkpoint.url": folder,
        "checkpoint.every.steps": EVERY,
        "evaluate.every.steps": 30,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "tracking.every.steps": 1,
        "tracking.record_samples": "true",
        "data.pack.to": f"{folder}/digits",
        "data.train.url": f"{folder}/digits/train",
        "data.eval.test.url": f"{folder}/digits/test",
        **more,
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def command(folder: Path, name: str, **more: object) -> list[str]:
    job = "jobs/pretrain_digits.yaml"
    return [sys.executable, "-m", "orchestrator", "run", job, *settings(folder, name, **more)]


@pytest.fixture(scope="module")
def quiet(ray_head: RayHead, folder: Path) -> Path:
    """A run of 60 steps that nothing disturbs: `ray job submit jobs/NAME.yaml`, as it stands."""
    job = ["jobs/pretrain_digits.yaml", *settings(folder, "quiet", **{"profile.steps": [10, 12]})]
    output = ray_head.call("ray", "job", "submit", "--address", ray_head.jobs, "--", *job)
    assert "succeeded" in output
    assert "held-out test:" in output
    assert f"the profile of steps 10 to 12: {folder}/quiet/{PROFILE}/summary.md" in output
    return folder / "quiet"


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


def wait_for_checkpoint(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    while not list(run.glob(f"step-{step:09d}-*/{MANIFEST}")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def training_workers() -> list[psutil.Process]:
    """The training workers of this test session's cluster."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and ancestor(process, os.getpid())
    ]


def ancestor(process: psutil.Process, pid: int) -> bool:
    return any(parent.pid == pid for parent in process.parents())


def test_a_run_and_its_history(quiet: Path, folder: Path) -> None:
    losses = history(folder, "quiet", "train/loss")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert losses[-1][1] < losses[0][1] - 0.2
    summary = json.loads((quiet / "summary.json").read_text())
    assert summary["step"] == STEPS
    assert [step for step, _ in history(folder, "quiet", "eval/test/top1")] == [30, 60]
    assert dict(history(folder, "quiet", "eval/test/images"))[60] == open_index(f"{folder}/digits/test").num_samples
    valid = sum(len(ids) for ids in trained_samples(str(quiet)).values())
    assert summary["totals"]["samples"] == valid
    assert dict(history(folder, "quiet", "train/samples"))[60] == valid


def test_the_run_in_mlflow_says_what_it_is(quiet: Path, folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.search_runs(["1"], filter_string="attributes.run_name = 'quiet'")[0]
    assert run.data.params["optimizer.lr"] == "0.002"
    assert run.data.params["data.train.url"] == f"{folder}/digits/train"
    inputs = {(i.tags[0].value, i.dataset.name): i.dataset.digest for i in run.inputs.dataset_inputs if i.tags}
    digest = open_index(f"{folder}/digits/train").digest
    assert any(digest.startswith(found) for (_, name), found in inputs.items() if name == "train")
    assert {"compute/exaflops", "compute/tpuv3_core_days_allocated", "compute/tpuv3_core_days_work"} <= set(
        run.data.metrics
    )
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"job.yaml", "requirements.txt"}
    # 6 x MACs of the job's model, by hand: 16 patches of 2x2x3, 17 tokens, D 64, MLP 256, 4 blocks, 10 classes
    tokens, width, mlp = 17, 64, 256
    macs = 16 * 12 * width + 4 * (4 * tokens * width**2 + 2 * tokens * width * mlp + 2 * tokens**2 * width) + 10 * width
    assert run.data.metrics["compute/exaflops"] * 1e18 == pytest.approx(6 * macs * run.data.metrics["train/samples"])


def test_where_the_time_of_a_step_goes(quiet: Path, folder: Path) -> None:
    """At every point the phases add up to the step, and the step is what images/s is worked out from, evaluations left
    out; steps 10 to 12 are traced."""
    names = ("step", "data_wait", "forward", "backward", "optimizer", "checkpoint_stall", "other")
    curves = {name: dict(history(folder, "quiet", f"time/{name}")) for name in names}
    images = dict(history(folder, "quiet", "train/samples"))
    rate = dict(history(folder, "quiet", "speed/images_per_second"))
    for step in range(2, STEPS + 1):
        whole, *parts = (curves[name][step] for name in names)
        assert all(part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(whole)
        assert all(curves[name][step] > 0 for name in ("forward", "backward", "optimizer"))
        trained = (images[step] - images[step - 1]) / rate[step]
        assert whole == pytest.approx(trained + curves["checkpoint_stall"][step])
    assert {step for step, stall in curves["checkpoint_stall"].items() if stall} == {16, 31, 46}
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.search_runs(["1"], filter_string="attributes.run_name = 'quiet'")[0]
    assert {a.path for a in client.list_artifacts(run.info.run_id, PROFILE)} == {
        f"{PROFILE}/summary.md",
        f"{PROFILE}/trace.json.gz",
    }
    stored = Path(client.download_artifacts(run.info.run_id, PROFILE))
    for path in stored.iterdir():
        assert path.read_bytes() == (quiet / PROFILE / path.name).read_bytes()
    assert "| forward |" in (quiet / PROFILE / "summary.md").read_text()


def test_every_sample_is_trained_once_an_epoch(quiet: Path, folder: Path) -> None:
    assert_every_sample_once_an_epoch(quiet, folder)


def test_the_newest_checkpoints_are_kept(quiet: Path) -> None:
    assert sorted(path.name[:14] for path in quiet.glob("step-*")) == [f"step-{s:09d}" for s in (30, 45, 60)]


def test_a_complete_run_is_not_trained_again(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    before = (quiet / "summary.json").read_bytes()
    assert "quiet is complete" in ray_head.call(*command(folder, "quiet"))
    assert (quiet / "summary.json").read_bytes() == before


def test_another_recipe_may_not_continue_a_run(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    process = ray_head.start(*command(folder, "quiet", **{"optimizer.lr": 0.5}))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count("\n") == 1
    assert "optimizer.lr = 0.5" in output


def test_killed_again_and_again(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    """A worker is killed, a worker hangs, the job is killed and goes on with 3 workers at another stage.

    The weights are the same to the last bit as long as there are as many workers.
    """
    run = folder / "killed"
    process = ray_head.start(*command(folder, "killed", **{"cluster.hang_timeout": 20}))
    wait_for_checkpoint(run, EVERY, process)
    training_workers()[0].send_signal(signal.SIGKILL)
    wait_for_checkpoint(run, 2 * EVERY, process)
    training_workers()[1].send_signal(signal.SIGSTOP)
    wait_for_checkpoint(run, 3 * EVERY, process)
    process.kill()
    output, _ = process.communicate()
    assert "worker 1 has not answered for" in output
    assert len(re.findall(r"continuing at step \d+ of 60 on 2 workers", output)) == 2
    here, there = weights(quiet, 3 * EVERY), weights(run, 3 * EVERY)
    assert all(torch.equal(here[key], there[key]) for key in here)
    until(lambda: not training_workers(), "the killed job's workers end")
    output = ray_head.call(*command(folder, "killed", **{"cluster.workers": 3, "parallel.zero_stage": 2}))
    assert re.search(r"continuing at step \d+ of 60 on 3 workers", output)
    assert_as_if_nothing_happened(quiet, folder, "killed")


def test_the_jobs_own_fault_ends_it_at_once(ray_head: RayHead, folder: Path, quiet: Path) -> None:
    """A shard that is gone: no restarts, and the last line names it."""
    shutil.copytree(folder / "digits", folder / "holed")
    shard = sorted((folder / "holed" / "train").glob("*.tar"))[0]
    shard.unlink()
    urls = {f"data.{key}.url": f"{folder}/holed/{key.split('.')[-1]}" for key in ("train", "eval.test")}
    process = ray_head.start(*command(folder, "holed_run", **{"data.pack": "null", "cluster.workers": 1, **urls}))
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, output
    assert shard.name in output.strip().splitlines()[-1]
    assert output.count("starting workers") == 1


def until(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.2)


def assert_as_if_nothing_happened(quiet: Path, folder: Path, name: str) -> None:
    """Samples, weights and history equal those of the undisturbed run, on whatever workers."""
    assert_every_sample_once_an_epoch(folder / name, folder)
    expected, found = history(folder, "quiet", "train/loss"), history(folder, name, "train/loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert dict(found) == pytest.approx(dict(expected), rel=1e-4)
    samples = [json.loads((run / "summary.json").read_text())["totals"]["samples"] for run in (quiet, folder / name)]
    assert samples[0] == samples[1]
    here, there = weights(quiet), weights(folder / name)
    # Adam divides each gradient by its size: where it is zero but for rounding (the keys' biases, which softmax
    # ignores), other rounding gives another direction. All together the weights agree.
    ours, theirs = (torch.cat([w[k] for k in sorted(w) if k.startswith("weight/")]) for w in (here, there))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_numbers_that_stay_wrong_stop_it(ray_head: RayHead, folder: Path, quiet: Path) -> None:
    """The second step's learning rate ruins the weights: back to the last checkpoint, once, and then the end."""
    more = {"optimizer.lr": 1e37, "training.max_bad_steps": 3, "checkpoint.every.steps": 1, "cluster.workers": 1}
    process = ray_head.start(*command(folder, "diverged", **more))
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, output
    skipped = "step 5: 3 steps in a row skipped (training.max_bad_steps = 3): "
    assert re.search(rf"{re.escape(skipped)}.*; going back to the last checkpoint\n.*continuing at step 2", output)
    last = output.strip().splitlines()[-1]
    assert skipped in last
    assert last.endswith("going back to a checkpoint did not help")


def test_images_from_a_store_in_bad_weather(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    """A tenth of the requests fail, some stall, some are cut short: the weights are those of the run from disk."""
    with gcs_server() as server:  # others: tests/data/storage/test_stores.py
        with reached_by(server) as bucket:
            for path in sorted((folder / "digits").glob("*/*")):
                storage.write_atomic(f"{bucket}/digits/{path.parent.name}/{path.name}", path.read_bytes())
        with FaultyProxy(server, seed=3, fail=0.1, stall=0.05, truncate=0.1) as proxy:
            urls = {f"data.{key}.url": f"{bucket}/digits/{key.split('.')[-1]}" for key in ("train", "eval.test")}
            environment = {"DATA_REQUEST_SECONDS": "2", **proxy.server.environment}
            words = command(folder, "weather", **{"data.pack": "null", **urls})
            process = ray_head.start(*words, environment=environment)
            wait_for_checkpoint(folder / "weather", 2 * EVERY, process)
            process.kill()
            process.communicate()
            assert sum(proxy.counts[fate] for fate in ("fail", "stall", "truncate")) > 3, proxy.counts
    until(lambda: not training_workers(), "the killed job's workers end")
    here, there = weights(quiet, 2 * EVERY), weights(folder / "weather", 2 * EVERY)
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_submitted_with_a_working_directory_from_elsewhere(ray_head: RayHead, tmp_path: Path) -> None:
    """Relative paths of the job then begin at ~/vit, since Ray deletes the folder that it unpacks."""
    sets = ("schedule.length.steps=5", "schedule.warmup=null", "cluster.workers=1")
    job = ["jobs/pretrain_digits.yaml", *(word for key in sets for word in ("--set", key))]
    words = ["ray", "job", "submit", "--address", ray_head.jobs, "--working-dir", str(ROOT), "--", *job]
    output = ray_head.call(*words, cwd=tmp_path)
    assert "succeeded" in output
    assert Path(ray_head.environment["HOME"], "vit/runs/pretrain_digits/summary.json").exists()
