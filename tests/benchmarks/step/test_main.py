"""`python -m benchmarks.step` on tiny models: the whole command, and turns of two processes."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import model
from benchmarks.step import __main__ as step
from benchmarks.step.phases import CATEGORIES
from benchmarks.step.report import Measured, ratios
from benchmarks.step.search import Trial
from tests.benchmarks.step.tiny import TASK, task
from tests.paths import ROOT

# All of requirements.txt except torch, deepspeed and the packages that deepspeed needs.
ABSENT = ["ray", "mlflow", "yaml", "webdataset", "fsspec", "gcsfs", "braceexpand", "safetensors", "cv2", "turbojpeg"]
ABSENT += ["imagehash", "PIL", "tenacity", "aiohttp", "sklearn", "scipy", "pyarrow", "pandas"]


@pytest.mark.servers
@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="shows what happens without it")
def test_a_small_run(tmp_path: Path) -> None:
    """The whole command, with only torch and deepspeed: ours is measured, one peer is broken, the other is absent."""
    (tmp_path / "timm.py").write_text("raise ValueError('broken on purpose')\n")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    remembered = tmp_path / "batches.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--compiled", "no", "--remember", str(remembered)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1, run.stderr  # a contender failed
    assert run.stderr.count("transformers is skipped: it is not installed\n") == 1
    assert run.stderr.count("failed") == 1
    assert "ViT-B/16 float32 timm failed: ValueError: broken on purpose\n" in run.stderr

    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert found["device"].endswith(", 1 thread")
    ours, broken = found["rows"]
    assert (ours["impl"], ours["model"], ours["precision"], ours["compiled"]) == ("ours", "ViT-B/16", "float32", False)
    assert (ours["checkpointing"], ours["zero_stage"], ours["error"]) == ("none", 0, None)
    assert 0 < ours["images_per_s_min"] <= ours["images_per_s"] <= ours["images_per_s_max"]
    assert list(ours["tried"]) == ["2", "4"]
    assert ours["tried"][str(ours["batch"])] == max(ours["tried"].values())
    assert 0.1 < ours["peak_gb"] < 5  # the whole process: gigabytes, not bytes or megabytes
    assert math.isclose(ours["loss"], 10 * math.log(2), rel_tol=0.1)  # sigmoids of 10 classes at 0
    assert set(ours["breakdown"]) == set(CATEGORIES)
    assert math.isclose(sum(ours["breakdown"].values()), 1.0, abs_tol=1e-3)
    assert min(ours["breakdown"][name] for name in ("matmul", "optimizer", "elementwise")) > 0
    assert (ours["mfu"], ours["idle"]) == (None, None)  # no datasheet, no GPU
    assert found["matmul_tflops"] == found["matmul"][0]["tflops"]
    training_flops = model.training_flops(dataclasses.replace(TASK, loss="sigmoid").config)
    expected = ours["images_per_s"] * training_flops / (1e12 * found["matmul_tflops"])
    assert math.isclose(ours["mfu_measured"], expected, rel_tol=0.02)  # rounding of small numbers

    assert (broken["impl"], broken["images_per_s"]) == ("timm", None)
    assert broken["error"] == "ValueError: broken on purpose"
    assert "Traceback" in broken["details"]
    assert found["ratios"] == []
    assert any("broken on purpose" in line for line in table)
    assert ours["batch"] in json.loads(remembered.read_text()).values()


TIMM = """
import types
import model

layers = types.SimpleNamespace(set_fast_norm=lambda: None)

def create_model(name, img_size, depth, embed_dim, mlp_ratio, num_heads, num_classes):
    sizes = dict(depth=depth, width=embed_dim, mlp_dim=int(embed_dim * mlp_ratio), heads=num_heads)
    vit = model.VisionTransformer(model.vit_config("B/16", image_size=img_size, num_classes=num_classes, **sizes))
    vit.set_grad_checkpointing = lambda on: None
    return vit
"""


@pytest.mark.servers
def test_turns_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and a peer that is the same model; then a peer that ends before its turn."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "timm.py").write_text(TIMM)

    def found(impl: str) -> Measured:
        alone = Measured(task(impl=impl, memory=10**10, seconds=0.01, warm_up=2))
        alone.climbed, alone.rounds = [Trial(2, [1.0], 10**9, 0.0)], {0: [1.0]}
        return alone

    ours, peer = found("ours"), found("timm")
    step.take_turns(ours, peer, range(5, 8))
    assert ours.error is peer.error is None, (ours.details, peer.details)
    assert list(ours.rounds) == list(peer.rounds) == [0, 5, 6, 7]
    assert all(len(rates) == 1 and rates[0] > 0 for one in (ours, peer) for rates in one.rounds.values())
    (ratio,) = ratios([ours, peer])
    assert ratio["turns"] == 3

    (tmp_path / "timm.py").write_text("raise ValueError('broken on purpose')\n")
    ours, peer = found("ours"), found("timm")
    step.take_turns(ours, peer, range(1, 3))
    assert (ours.error, peer.error) == (None, "ValueError: broken on purpose")
    assert "Traceback" in peer.details

    ours.task = peer.task = task(memory=10**9)  # less than both need
    step.take_turns(ours, peer, range(1, 3))
    assert list(ours.rounds) == [0]
