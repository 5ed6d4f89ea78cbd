"""Runs whose data and checkpoints lie in folders with odd names, on a disk and in a bucket."""

import json
import shutil
from pathlib import Path

import pytest

from data import storage
from infra.local.stores import gcs_server, reached_by
from orchestrator.checkpoint.manifest import MANIFEST
from tests.cluster import RayHead
from tests.runs.helpers import command

STEPS, EVERY = 24, 8
KEYS = {
    "data.pack": "null",
    "cluster.workers": 1,
    "schedule.length.steps": STEPS,
    "checkpoint.every.steps": EVERY,
    "checkpoint.keep": 1,
    "evaluate.every.steps": STEPS,
    "tracking.record_samples": "false",
}


def urls(data: str, runs: str) -> dict[str, str]:
    return {"data.train.url": f"{data}/train", "data.eval.test.url": f"{data}/test", "checkpoint.url": runs}


@pytest.mark.parametrize("name", ["set [v2] #1", "100%20 {v} &+*?"])
def test_a_run_on_a_disk(ray_head: RayHead, folder: Path, digits: Path, name: str) -> None:
    """It is trained, keeps its newest checkpoint alone, and goes on from it. The neighbours' files stay."""
    shutil.copytree(digits, folder / name / "digits")
    runs, neighbour = folder / name / "runs", folder / name[:3] / "runs" / "odd" / f"step-{EVERY:09d}-00000000"
    neighbour.mkdir(parents=True)
    (neighbour / MANIFEST).write_text("{}")
    keys = KEYS | urls(f"{folder}/{name}/digits", str(runs))
    output = ray_head.call(*command(folder, "odd", **keys))
    assert "held-out test:" in output
    assert [path.name[:14] for path in (runs / "odd").glob("step-*")] == [f"step-{STEPS:09d}"]
    assert "odd is complete" in ray_head.call(*command(folder, "odd", **keys))
    assert json.loads((runs / "odd" / "summary.json").read_text())["step"] == STEPS
    assert (neighbour / MANIFEST).exists()


def test_a_run_in_a_bucket(ray_head: RayHead, folder: Path, digits: Path) -> None:
    """Its old checkpoints are deleted, and those of the runs whose folders its name matches are not."""
    with gcs_server() as server, reached_by(server) as bucket:
        for path in sorted(digits.glob("*/*")):
            storage.write_atomic(f"{bucket}/set [v2]/{path.parent.name}/{path.name}", path.read_bytes())
        beside = [f"{bucket}/runs {letter}/odd/step-{EVERY:09d}-00000000" for letter in "v2"]
        for url in beside:
            storage.write_atomic(f"{url}/{MANIFEST}", b"{}")
        keys = KEYS | urls(f"{bucket}/set [v2]", f"{bucket}/runs [v2]")
        output = ray_head.call(*command(folder, "odd", **keys), environment=server.environment)
        assert "held-out test:" in output
        steps = [name for name in storage.contents(f"{bucket}/runs [v2]/odd") if name.startswith("step-")]
        assert [name[:14] for name in steps] == [f"step-{STEPS:09d}"]
        assert MANIFEST in storage.contents(f"{bucket}/runs [v2]/odd/{steps[0]}")
        for url in beside:
            assert storage.read(f"{url}/{MANIFEST}") == b"{}"
