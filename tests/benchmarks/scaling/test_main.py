"""The command line of benchmarks/scaling."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import __main__ as scaling
from tests.paths import ROOT


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.scaling", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_line(tmp_path: Path) -> None:
    """The rate is that of the fastest row of ours with this model in bf16."""
    row = {"model": "ViT-H/14", "impl": "ours", "precision": "bf16", "checkpointing": "none", "compiled": True}
    rows = [
        {**row, "batch": 32, "images_per_s": 300.0},
        {**row, "batch": 64, "images_per_s": 320.0},
        {**row, "batch": 64, "images_per_s": None},  # failed
        {**row, "batch": 64, "images_per_s": 900.0, "impl": "timm"},
        {**row, "batch": 64, "images_per_s": 900.0, "precision": "float32"},
        {**row, "batch": 64, "images_per_s": 900.0, "model": "ViT-B/16"},
    ]
    (tmp_path / "step.txt").write_text("a table\n" + json.dumps({"device": "NVIDIA X", "rows": rows}) + "\n")
    done = run("--step", str(tmp_path / "step.txt"), "--ranks", "64", "128")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["device"]["source"] == "measured on NVIDIA X"
    assert "ASSUMED" not in done.stdout
    assert [(row["ranks"], row["stage"]) for row in found["rows"]] == list(itertools.product((64, 128), (1, 2, 3)))
    assert found["rows"][0]["compute_ms"] == pytest.approx(1e3 * 64 / 320, rel=1e-3)  # 64 images, as measured
    assert found["rows"][0]["state_gb"] == 4.06  # docs/sizing.md
    assert any("128" in line for line in table)
    for ranks in ("64", "128"):
        of_ranks = [row for row in found["rows"] if row["ranks"] == int(ranks)]
        assert found["fastest"][ranks] == min(of_ranks, key=lambda row: row["step_ms"])["stage"]


def test_an_assumption_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--ranks", "8"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "ASSUMED" in table[1]
    assert json.loads(last)["device"]["source"] == "ASSUMED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "8192"], "fewer images than accelerators"),
        (["--ranks", "0"], "is not a positive whole number"),
        (["--between", "-1"], "is not a positive number"),
        (["--fraction", "1.5"], "must be at most 1"),
        (["--model", "Huge"], "Huge"),
        (["--step", "nowhere.txt"], "nowhere.txt"),
        (["--step", "pyproject.toml"], "pyproject.toml: its last line is not that of benchmarks.step"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = scaling.main(words)
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert said in error
