"""A run continues from a checkpoint at any stage and on any number of workers, as if it had not been interrupted."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from infra.local.ranks import run_ranks
from tests.orchestrator.checkpoint.helpers import weights
from tests.orchestrator.small_run import (
    Curve,
    build_engine,
    state_of,
    train_digits,
    unchanged,
    write_checkpoint,
)

SAVED, AGAIN, END = 4, 6, 8


@dataclass(frozen=True)
class Whole:
    """A run of two workers to the end.

    Attributes:
        losses: of every step.
        run: a folder with only the checkpoint of step `SAVED`.
        end: a folder with only the checkpoint of the last step.
    """

    losses: list[float]
    run: Path
    end: Path


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Whole]:
    """whole(stage, **options): the run with these settings, trained once for all tests of this file."""

    @cache
    def trained(stage: int, **options: object) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        curve = run_ranks(2, train, str(digits / "train"), stage, END, str(folder), None, {"save_at": SAVED, **options})
        for step, name in ((SAVED, "run"), (END, "end")):
            (checkpoint,) = folder.glob(f"step-{step:09d}-*")
            (folder / name).mkdir()
            checkpoint.rename(folder / name / checkpoint.name)
        return Whole(curve[0].losses, folder / "run", folder / "end")

    return trained


def train(
    shards: str, stage: int, steps: int, save: str | None, resume: str | None, options: dict[str, object]
) -> Curve:
    return train_digits(shards, stage, steps, save, resume, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_another_number_of_workers_continues_the_same_run(
    digits: Path, tmp_path: Path, whole: Callable[..., Whole], stage: int
) -> None:
    """From two workers to one, to two, and to five and then two."""
    shards, uninterrupted = str(digits / "train"), whole(stage)
    run, expected = str(uninterrupted.run), uninterrupted.losses[SAVED:]
    for world_size in (1, 2):
        resumed = run_ranks(world_size, train, shards, stage, END, str(tmp_path / f"w{world_size}"), run, {})[0]
        assert resumed.losses == pytest.approx(expected, rel=1e-5)
    five = run_ranks(5, train, shards, stage, AGAIN, str(tmp_path / "five"), run, {})[0]
    back = run_ranks(2, train, shards, stage, END, str(tmp_path / "back"), str(tmp_path / "five"), {})[0]
    assert five.losses + back.losses == pytest.approx(expected, rel=1e-5)
    there, again = weights(uninterrupted.end), weights(tmp_path / "w2")
    assert there.keys() == again.keys()
    assert all(torch.equal(there[key], again[key]) for key in there), "same world size: bitwise"


@pytest.mark.parametrize(("saved_at", "resumed_at"), [(0, 3), (1, 2), (2, 0), (3, 1)])
def test_another_stage_resumes(digits: Path, whole: Callable[..., Whole], saved_at: int, resumed_at: int) -> None:
    uninterrupted = whole(saved_at)
    resumed = run_ranks(1, train, str(digits / "train"), resumed_at, END, None, str(uninterrupted.run), {})[0]
    assert resumed.losses == pytest.approx(uninterrupted.losses[SAVED:], rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_runs_keep_their_float32_weights(digits: Path, whole: Callable[..., Whole], stage: int) -> None:
    uninterrupted, options = whole(stage, precision="bf16"), {"precision": "bf16"}
    resumed = run_ranks(2, train, str(digits / "train"), stage, END, None, str(uninterrupted.run), options)[0]
    assert resumed.losses == uninterrupted.losses[SAVED:]
    head = weights(uninterrupted.run)["weight/head.weight"]
    assert head.dtype == torch.float32
    assert not torch.equal(head, head.bfloat16().float()), "more than bf16 holds"


def test_sgd_momentum_is_restored(digits: Path, whole: Callable[..., Whole]) -> None:
    uninterrupted = whole(2, sgd=True)
    resumed = run_ranks(2, train, str(digits / "train"), 2, END, None, str(uninterrupted.run), {"sgd": True})[0]
    assert resumed.losses == uninterrupted.losses[SAVED:]


def test_saving_changes_nothing(tmp_path: Path) -> None:
    """Weights and optimizer state do not change, so the uninterrupted run of these tests may save."""
    for same in run_ranks(2, save_and_compare, str(tmp_path)):
        assert same == dict.fromkeys(itertools.product(range(4), ("float32", "bf16")), True)


def save_and_compare(folder: str) -> dict[tuple[int, str], bool]:
    """By stage and precision: whether a save changes nothing on this rank."""
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = (images, torch.tensor([[1], [2], [3], [4], [5]]), torch.ones(5, 1), torch.ones(5, dtype=torch.bool), None)
    same = {}
    for stage, precision in itertools.product(range(4), ("float32", "bf16")):
        engine = build_engine(stage, precision=precision, dropout=0.0)
        engine.train_step(*batch, lr=1e-3)
        before = state_of(engine)
        write_checkpoint(engine, f"{folder}/{stage}-{precision}", 1)
        same[stage, precision] = unchanged(before, state_of(engine))
    return same
