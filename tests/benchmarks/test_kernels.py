"""`python -m benchmarks.kernels`: what it compares, and that its stars are the choices of the step."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import kernels
from model import vit_config
from model.layers import attention
from tests.paths import ROOT

CPU = torch.device("cpu")


@pytest.mark.servers
def test_a_small_run() -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "--model", "Ti/16", "--batch", "1", "--repeats", "2"]
    command += [
        "--groups",
        "attention",
        "padding",
        "memory",
        "subnormal",
        "sums",
        "clipping",
    ]  # all but `input`
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    rows = json.loads(last)["rows"]
    assert len(table) == 2 + len(rows)
    assert all(0 < row["ms_min"] <= row["ms"] <= row["ms_max"] for row in rows)
    groups = [row["group"] for row in rows]
    assert {group: groups.count(group) for group in groups} == {
        "memory": 2,
        "attention": 2,
        "padding": 4,
        "subnormal": 2,
        "sums": 2,
        "clipping": 2,
    }
    assert sum(row["used"] for row in rows) == 6, "one of each group"


def test_an_unknown_model_is_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "--model", "G/99"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "--model" in run.stderr.splitlines()[-1]


@pytest.mark.skipif(
    attention.through_float32(torch.ones(1, dtype=torch.bfloat16)), reason="a CPU without bf16 products"
)
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_star_is_the_choice_of_the_model(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    apply = attention.BackwardByProducts.apply
    monkeypatch.setattr(attention.BackwardByProducts, "apply", lambda *x: calls.append("by products") or apply(*x))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    attention.attention(*(torch.ones(1, 1, 4, 8, dtype=dtype, requires_grad=True) for _ in range(3)))
    marked = [
        name
        for name in kernels.attention(vit_config("Ti/16"), 1, dtype, CPU)
        if kernels.used("attention", name, precision, CPU)
    ]
    assert marked == ["backward by products" if calls else "fused"]
