"""A whole run on a real Ray cluster, as a user starts it: its history, its samples, its files, and a second start."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from data import open_index
from orchestrator.history.ledger import trained_samples
from tests.cluster import RayHead
from tests.runs.conftest import PROFILE
from tests.runs.helpers import STEPS, assert_every_sample_once_an_epoch, command, history


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
    started = ray_head.start(*command(folder, "quiet", **{"optimizer.lr": 0.5}))
    output = started.end(60)
    assert started.process.returncode == 2
    assert output.count("\n") == 1
    assert "optimizer.lr = 0.5" in output


def test_a_complete_run_measures_a_set_that_is_added(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    more = {"data.eval.again.url": f"{folder}/digits/train"}
    output = ray_head.call(*command(folder, "quiet", **more))
    assert "quiet has not measured again yet" in output
    summary = json.loads((quiet / "summary.json").read_text())
    assert summary["metrics"]["eval/again/images"] == open_index(f"{folder}/digits/train").num_samples
    assert [step for step, _ in history(folder, "quiet", "eval/again/top1")] == [STEPS]
    assert [step for step, _ in history(folder, "quiet", "eval/test/top1")] == [30, 60], "no point comes twice"
    assert "quiet is complete" in ray_head.call(*command(folder, "quiet", **more))
