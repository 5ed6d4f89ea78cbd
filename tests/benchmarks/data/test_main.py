"""`python -m benchmarks.data`, the whole command, on a small set."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data import sets
from tests.paths import ROOT


@pytest.mark.servers
@pytest.mark.skipif(importlib.util.find_spec("litdata") is not None, reason="shows what happens without litdata")
def test_a_small_run(tmp_path: Path) -> None:
    """Every field of the JSON line is there, and a library that is not installed is skipped."""
    names = ["ours", "webdataset_pil", "webdataset_same_decoder", "litdata", "decode_cv2_threads"]
    command = [sys.executable, "-m", "benchmarks.data", "--quick", "--work-dir", str(tmp_path), "--only", *names]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert all(found[name] > 0 for name in ("ours", "webdataset_pil", "webdataset_same_decoder", "decode_limit"))
    assert found["peers"] == {}
    assert "litdata is skipped: No module named 'litdata'" in run.stderr
    assert list(found["first_batch_s"]) == ["0", "50", "90"]
    assert all(seconds > 0 for seconds in found["first_batch_s"].values())
    assert found["peak_mb"] > 50  # megabytes, not kilobytes or gigabytes
    assert 1 < found["bytes_read_over_used"] < 2  # tar headers; groups of 64 samples at the edges of blocks of 128
    assert [line.split()[0] for line in table[1:]] == [name for name in names if name != "litdata"]

    images = [encoded for encoded, _ in sets.read_tars(next(tmp_path.glob("*/tars")))]
    assert len(images) == 512
    assert len(set(images)) == 64
