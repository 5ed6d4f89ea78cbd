"""benchmarks/start: one start of each, and the sums."""

import json
import subprocess
import sys

import pytest

from benchmarks.start.__main__ import PHASES, report
from tests.paths import ROOT


def test_medians_and_ratios() -> None:
    driver = PHASES["ray.init"]
    runs = {
        "job": [{"start": s, "restart": 3.0, "phases": {driver: s / 4}} for s in (8.0, 12.0, 10.0)],
        "empty": [{"start": 8.0, "restart": 4.0, "phases": {}} for _ in range(3)],
    }
    found = report(runs)
    assert found["start"] == {
        "job_s": 10.0,
        "empty_s": 8.0,
        "ratio": 1.25,
        "job": [8.0, 12.0, 10.0],
        "empty": [8.0] * 3,
    }
    assert found["restart"]["ratio"] == 0.75
    assert found["phases"] == {"job": {driver: 2.5}, "empty": {}}


@pytest.mark.cluster
def test_a_quick_run() -> None:
    command = [sys.executable, "-m", "benchmarks.start", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])["workers"]["1"]
    for what in ("start", "restart"):
        assert found[what]["job_s"] > 0
        assert found[what]["empty_s"] > 0
    assert set(found["phases"]["job"]) == set(PHASES.values())
    phases = sum(found["phases"]["job"].values())
    assert phases == pytest.approx(found["start"]["job_s"], abs=0.2), "the phases are the whole start"
