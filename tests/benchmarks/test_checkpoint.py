"""`python -m benchmarks.checkpoint`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.mark.servers
def test_a_small_run(tmp_path: Path) -> None:
    """On a small model, every field of the JSON line is there, and no file is left behind."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--model", "ViT-Ti/16", "--repeats", "1"]
    command += ["--places", "disk", "--work-dir", str(tmp_path)]  # the emulator of a bucket is slow
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert table[-1].split()[0] == "disk"
    assert 60e6 < found["state_bytes"] < 80e6  # 5.7 million parameters
    for place in found["places"].values():
        assert 0 < place["stall_s"] < place["sync_s"]
        assert 0 < place["fraction"] < 1
    assert found["fraction"] == max(place["fraction"] for place in found["places"].values())
    assert list(tmp_path.iterdir()) == []
