"""`python -m benchmarks.numerics`: the whole command, a step that is wrong, and mistakes on the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.numerics import __main__ as numerics
from benchmarks.numerics.job import Recipe, Variant
from data.sources.digits import pack_digits
from tests.paths import ROOT


@pytest.mark.servers
def test_a_small_run() -> None:
    """Every field of the JSON line is there, and the table is free of DeepSpeed's output."""
    command = [sys.executable, "-m", "benchmarks.numerics", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert table[0].startswith("reference: loss ")
    assert [line.split()[0] for line in table[3:]] == numerics.QUICK
    plain, low = found["rows"]
    assert (plain["variant"], plain["precision"], plain["zero_stage"], plain["workers"]) == ("float32", "float32", 0, 1)
    assert (low["variant"], low["precision"], low["zero_stage"], low["workers"]) == ("bf16-zero1", "bf16", 1, 1)
    for row in found["rows"]:
        assert row["error"] is None
        assert row["within_noise"] is True
        assert len(row["differences"]) == 2
        assert 0 < row["largest_difference"] <= row["noise"] == found["noise"]
    assert plain["largest_difference"] < 1e-5 < low["largest_difference"]  # the engine in float32 is the plain loop
    assert 0 < found["rounding"] < found["noise"]
    assert found["reductions"] == []
    assert found["recipe"]["steps"] == 20
    assert "8 of 8: " in run.stderr


def test_a_wrong_step_is_outside_of_noise(tmp_path: Path) -> None:
    """A learning rate that is 1.5 times as high, beside a correct step."""
    pack_digits(str(tmp_path))
    seeds = [0, 1]
    right, wrong = Variant("float32"), Variant("wrong")
    trainings = [numerics.Training(None, seed, moved) for moved in (False, True) for seed in seeds]
    trainings += [numerics.Training(right, seed) for seed in seeds] + [WrongRate(wrong, seed) for seed in seeds]
    recipe = Recipe(40)
    curves, errors = numerics.train_all(trainings, f"{tmp_path}/train", recipe)
    assert errors == {}
    found = numerics.report([right, wrong], curves, errors, recipe)
    assert [row["within_noise"] for row in found["rows"]] == [True, False]
    assert found["within_noise"] is False


class WrongRate(numerics.Training):
    def run(self, shards: str, recipe: Recipe) -> list[float]:
        return super().run(shards, replace(recipe, lr=1.5 * recipe.lr))


def test_a_variant_that_fails_is_named_and_not_within_noise(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(4)
    curves = {numerics.REFERENCE: {0: [2.0] * 4, 1: [1.0] * 4}, numerics.MOVED: {0: [2.0] * 4, 1: [1.001] * 4}}
    found = numerics.report([Variant("broken")], curves, {"broken": "ValueError: on purpose"}, recipe)
    (row,) = found["rows"]
    assert (row["error"], row["within_noise"], found["within_noise"]) == ("ValueError: on purpose", False, False)
    numerics.print_table(found)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["broken", "ValueError:", "on", "purpose"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variants", "float16"], "there is no 'float16'"),
        (["--seeds", "3"], "two or more"),
        (["--seeds", "3", "3"], "two or more"),
        (["--steps", "9"], "10 or more"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        numerics.main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
