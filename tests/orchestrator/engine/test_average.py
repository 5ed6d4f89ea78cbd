"""The average of the weights, at every stage and precision: against the plain sum, and over restarts."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import model
from infra.local.ranks import run_ranks
from model.objectives import dense_targets, softmax_cross_entropy
from orchestrator.checkpoint.as_model.trained import Address, read_trained
from orchestrator.checkpoint.fragments import held_fragments, optimizer_state
from orchestrator.checkpoint.restore import restore
from orchestrator.engine.step import Engine
from orchestrator.job.choices import SGD, AdamW
from orchestrator.job.sections import Parallel
from orchestrator.training.averaged import averaged_weights
from tests.orchestrator.checkpoint.runs import MODEL, describe
from tests.orchestrator.small_run import state_of, unchanged, write_checkpoint

DECAY, STEPS = 0.7, 4
CASES = [(stage, precision, False) for stage, precision in product(range(4), ("float32", "bf16"))]
CASES += [(0, "float32", True), (3, "bf16", True)]


def engine_of(stage: int, precision: str = "float32", sgd: bool = False) -> Engine:
    torch.manual_seed(0)
    vit = model.create_model(**{**MODEL, "dropout": 0.0})
    torch.nn.init.normal_(vit.head.weight, std=0.02)
    adamw = AdamW(name="adamw", lr=1e-2, weight_decay=0.1, ema=DECAY)
    return Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 10)),
        model.decay_mask(vit),
        optimizer=SGD(name="sgd", lr=1e-2, weight_decay=0.1, ema=DECAY) if sgd else adamw,
        parallel=Parallel.model_validate({"zero_stage": stage, "precision": precision}),
        micro_batch=2,
        local_batch=math.ceil(8 / dist.get_world_size()),
        device=torch.device("cpu"),
    )


def take_step(engine: Engine, number: int, *, spoiled: bool = False) -> bool:
    """One step on this rank's share of eight random images; returns whether it was applied."""
    generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
    n = math.ceil(8 / dist.get_world_size())
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n, 1), generator=generator)
    weights = torch.full((n, 1), math.inf if spoiled else 1.0)
    result = engine.train_step(images, labels, weights, torch.ones(n, dtype=torch.bool), None, lr=1e-2)
    return bool(result.applied)


def held(engine: Engine, key: str) -> dict[tuple[str, int], Tensor]:
    """Copies of this rank's part of the float32 weights ("weight"), or of a state of the optimizer."""
    return {
        (f.name, f.start): f.view(f.flat if key == "weight" else optimizer_state(engine, f.flat)[key]).double()
        for f in held_fragments(engine)
    }


def follow(engine: Engine, steps: range, averages: dict[tuple[str, int], Tensor]) -> float:
    """Take steps, one of which is skipped, and average in float64; returns the largest difference."""
    for number in steps:
        applied = take_step(engine, number, spoiled=number == 1)
        assert applied == (number != 1)
        if applied:
            now = held(engine, "weight")
            averages = {place: DECAY * averages[place] + (1 - DECAY) * now[place] for place in averages}
    found = held(engine, "ema")
    assert found.keys() == averages.keys()
    return max(float((found[place] - averages[place]).abs().max()) for place in averages)


def differences(_: str) -> dict[tuple[int, str, bool], float]:
    found = {}
    for case in CASES:
        engine = engine_of(*case)
        found[case] = follow(engine, range(STEPS), held(engine, "weight"))
    return found


def test_it_is_the_plain_average(tmp_path: Path) -> None:
    """It begins as the weights at step 0, and a skipped step, here the second, leaves it as it is."""
    for found in run_ranks(2, differences, str(tmp_path)):
        assert found.keys() == set(CASES)
        assert max(found.values()) < 1e-6


def test_a_skipped_first_step_does_not_begin_it_elsewhere(tmp_path: Path) -> None:
    run_ranks(1, skip_first, str(tmp_path))


def skip_first(_: str) -> None:
    for stage, precision in product((0, 1), ("float32", "bf16")):
        engine = engine_of(stage, precision)
        begun = held(engine, "weight")
        assert not take_step(engine, 0, spoiled=True)
        assert follow(engine, range(2, 4), begun) < 1e-6


def test_checkpoints_carry_it_to_any_stage_and_number_of_workers(tmp_path: Path) -> None:
    run_ranks(3, save_some, str(tmp_path), 3)
    for world_size, stage in ((1, 0), (2, 1)):
        again = tmp_path / f"again{stage}"
        run_ranks(world_size, save_again, str(tmp_path), str(again), stage)
        for folder in (tmp_path, again):
            describe(folder)
        for weights in ("live", "ema"):
            one = read_trained(Address(str(tmp_path), "2", weights), pytest.fail).tensors
            other = read_trained(Address(str(again), "2", weights), pytest.fail).tensors
            assert all(torch.equal(one[name], other[name]) for name in one)
        live = read_trained(Address(str(again), "2"), pytest.fail).tensors
        assert not torch.equal(live["head.weight"], other["head.weight"])


def save_some(folder: str, stage: int) -> None:
    engine = engine_of(stage)
    for number in (0, 2):
        take_step(engine, number)
    write_checkpoint(engine, folder, 2)


def save_again(run: str, to: str, stage: int) -> None:
    engine = engine_of(stage)
    assert restore(engine, run) is not None
    averages = held(engine, "ema")
    write_checkpoint(engine, to, 2)
    assert follow(engine, range(2, 4), averages) < 1e-6


def test_measuring_it_changes_nothing(tmp_path: Path) -> None:
    run_ranks(2, measure, str(tmp_path))


def measure(_: str) -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for stage, precision in product(range(4), ("float32", "bf16")):
        engine = engine_of(stage, precision)
        with averaged_weights(engine):  # before the first step: the weights themselves
            begun = engine.logits(images)
        assert torch.equal(begun, engine.logits(images))
        for number in (0, 2):
            take_step(engine, number)
        before, average, live = state_of(engine), held(engine, "ema"), engine.logits(images)
        with averaged_weights(engine):
            inside = held(engine, "weight")
            assert all(torch.equal(inside[place], average[place]) for place in average)
            assert not torch.equal(engine.logits(images), live)
        assert unchanged(before, state_of(engine))
        assert torch.equal(engine.logits(images), live)
        with pytest.raises(RuntimeError, match="cut"), averaged_weights(engine):
            raise RuntimeError("cut")
        assert all(torch.equal(held(engine, "ema")[place], average[place]) for place in average)
