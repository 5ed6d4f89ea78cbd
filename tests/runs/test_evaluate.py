"""An evaluation of a whole run on Ray: the numbers of the run's own last evaluation, and what it leaves behind."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.cluster import RayHead


def test_it_measures_what_the_run_measured(ray_head: RayHead, quiet: Path, folder: Path) -> None:
    sets = f"{{a: {{train: {folder}/digits/train, test: {folder}/digits/test, augment: {{crop: resize}}}}}}"
    keys = {
        "name": "measured",
        "model.init_from": quiet,
        "checkpoint.url": folder,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "data.eval.test.url": f"{folder}/digits/test",
        "evaluators": f"{{few_shot: {{sets: {sets}, shots: [5]}}}}",
        "batch_size": 50,
    }
    words = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    output = ray_head.call("python", "-m", "orchestrator", "run", "jobs/evaluate_digits.yaml", *words, "--json")
    assert "the whole image squeezed to 8 x 8 (as in vit_jax)" in output
    assert " ± " in output

    summary = json.loads((folder / "measured/summary.json").read_text())
    assert json.loads(output.splitlines()[-1]) == summary
    own = json.loads((quiet / "summary.json").read_text())["metrics"]
    metrics = summary["metrics"]
    for name in ("images", "top1", "top5", "bad_samples"):
        assert metrics[f"eval/test/{name}"] == own[f"eval/test/{name}"]
    assert metrics["eval/test/loss"] == pytest.approx(own["eval/test/loss"], rel=1e-4)
    assert 0 < metrics["few_shot/a/5shot"] < 1

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    tracked = client.get_run(summary["mlflow_run_id"])
    assert tracked.data.metrics["eval/test/top1"] == metrics["eval/test/top1"]
    assert (tracked.info.status, tracked.data.params["model.init_from"]) == ("FINISHED", str(quiet))
    files = [file.path for file in client.list_artifacts(tracked.info.run_id, "report")]
    assert "report/test.live.confusion.png" in files

    again = ray_head.call(
        *("python", "-m", "orchestrator", "run", "jobs/evaluate_digits.yaml", *words),
        *("--set", "name=again", "--set", f"compare={folder}/measured", "--set", "cluster.workers=1"),
        *("--set", "evaluators=null"),
    )
    assert "live weights less the compared evaluation: +0.00% (95 %: +0.00% to +0.00%)" in again
