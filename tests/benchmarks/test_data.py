import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import sets
from benchmarks.data.pipelines import DECODERS
from tests.paths import ROOT


@pytest.mark.skipif(importlib.util.find_spec("litdata") is not None, reason="shows what happens without litdata")
def test_a_small_run(tmp_path):
    """The whole script on a small set: every field of the JSON line, and a library that is not installed left out."""
    names = ["ours", "webdataset_pil", "webdataset_same_decoder", "litdata", "decode_cv2_threads"]
    command = [sys.executable, "-m", "benchmarks.data", "--quick", "--work-dir", str(tmp_path), "--only", *names]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert all(found[name] > 0 for name in ("ours", "webdataset_pil", "webdataset_same_decoder", "decode_limit"))
    assert found["peers"] == {}
    assert "litdata is left out: No module named 'litdata'" in run.stderr
    assert list(found["first_batch_s"]) == ["0", "50", "90"]
    assert all(seconds > 0 for seconds in found["first_batch_s"].values())
    assert found["peak_mb"] > 50  # megabytes, not kilobytes or gigabytes
    assert 1 < found["bytes_read_over_used"] < 2  # tar headers; groups of 64 samples at the edges of blocks of 128
    assert [line.split()[0] for line in table[1:]] == [name for name in names if name != "litdata"]

    images = [encoded for encoded, _ in sets.read_tars(next(tmp_path.glob("*/tars")))]
    assert len(images) == 512
    assert len(set(images)) == 64


def test_the_images_are_like_photographs():
    """500x375 at quality 90, all different, of the size on disk that such photographs have; the same every time."""
    encoded = sets.photographs(16, seed=0)
    assert encoded == sets.photographs(16, seed=0)
    assert len(set(encoded)) == 16
    assert 30e3 < np.mean([len(image) for image in encoded]) < 80e3
    quality_90 = io.BytesIO()
    Image.new("RGB", (8, 8)).save(quality_90, "JPEG", quality=90)
    images = [Image.open(io.BytesIO(image)) for image in encoded]
    assert {image.size for image in images} == {(500, 375)}
    assert all(image.quantization == Image.open(quality_90).quantization for image in images)


@pytest.mark.parametrize("number", range(8))
def test_all_decoders_draw_the_same_picture(number):
    """The contenders do the same work: the same window at the same place, up to how each library filters."""
    encoded = sets.photographs(1, seed=number)[0]
    pictures = {}
    for name, decode in DECODERS.items():
        pictures[name] = np.zeros((224, 224, 3), np.uint8)
        decode(encoded, pictures[name], number)
    for name in ("cv2", "ours"):
        difference = np.abs(pictures[name].astype(int) - pictures["pil"]).mean()
        assert difference < 3, name
    moved = np.abs(np.roll(pictures["pil"], 3, axis=1).astype(int) - pictures["pil"]).mean()
    assert moved > 3  # the bound above would notice a window that is three pixels off
