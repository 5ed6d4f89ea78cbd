"""The best checkpoint: which one it is, and that it stays besides the newest."""

import math
from pathlib import Path

import pytest

from orchestrator.checkpoint.best import Best
from orchestrator.checkpoint.manifest import MANIFEST, Manifest, new_name, prune

TOP1 = Best("eval/val/top1", "max")
LOSS = Best("eval/val/loss", "min")


def manifest(step: int, evaluated: int | None = None, **values: float) -> Manifest:
    metrics = {f"eval/val/{name}": value for name, value in values.items()}
    metrics["evaluated_step"] = float(step if evaluated is None else evaluated)
    return Manifest(
        parameters={}, files={}, fragments=[], step=step, world_size=1, totals={"steps": step}, metrics=metrics
    )


@pytest.mark.parametrize(
    ("best", "values", "step"),
    [
        (TOP1, {10: 0.5, 20: 0.9, 30: 0.7}, 20),
        (LOSS, {10: 0.5, 20: 0.9, 30: 0.7}, 10),
        (TOP1, {10: 0.5, 20: 0.9, 30: 0.9}, 20),
        (LOSS, {10: math.nan, 20: 0.9, 30: math.inf}, 20),
        (TOP1, {10: 0.0, 20: math.nan}, 10),
        (TOP1, {10: math.inf, 20: -math.inf}, None),
        (TOP1, {}, None),
    ],
)
def test_which_is_the_best(best: Best, values: dict[int, float], step: int | None) -> None:
    name = best.metric.rpartition("/")[2]
    found = best.of(manifest(step, **{name: value}) for step, value in sorted(values.items(), reverse=True))
    assert (None if found is None else found.step) == step


def test_a_value_of_other_weights_does_not_count() -> None:
    """The checkpoint of step 20 holds the value that was measured at step 10."""
    found = TOP1.of([manifest(30, top1=0.3), manifest(20, evaluated=10, top1=0.9)])
    assert found is not None
    assert found.step == 30
    assert LOSS.of([manifest(30, top1=0.3)]) is None


def write(run: Path, step: int, top1: float) -> str:
    name = new_name(step, 0)
    (run / name).mkdir()
    (run / name / MANIFEST).write_text(manifest(step, top1=top1).dumps())
    return name


def test_the_best_stays_besides_the_newest(tmp_path: Path) -> None:
    kept = []
    for step, top1 in enumerate([0.1, 0.8, 0.3, 0.2, 0.9, 0.9, 0.1, math.nan], 1):
        name = write(tmp_path, step, top1)
        prune(str(tmp_path), 2, newest=name, best=TOP1.of)
        kept.append(sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [5, 6], [5, 6, 7], [5, 7, 8]]


def test_what_a_start_left_behind_is_not_the_best(tmp_path: Path) -> None:
    """A run that went back from step 30 to 10 and saves step 20: the one of step 30 is marked, and counts no more."""
    for step, top1 in ((10, 0.2), (30, 0.9), (20, 0.1)):
        write(tmp_path, step, top1)
    prune(str(tmp_path), 1, newest=new_name(20, 0), best=TOP1.of)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new_name(step, 0) for step in (10, 20, 30)]
    write(tmp_path, 25, 0.15)
    prune(str(tmp_path), 1, newest=new_name(25, 0), best=TOP1.of)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new_name(step, 0) for step in (10, 25, 30)]
