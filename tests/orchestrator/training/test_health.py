"""Steps that are not finite: skipped on all workers, counted, explained.

Each test runs two real processes. The data brings in label weights and losses that are not finite, and a hook on one
rank brings in such gradients. The reference is a plain PyTorch loop without the bad steps.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data.loading.loader import Batch
from infra.local.ranks import run_ranks
from orchestrator.checkpoint.restore import restore
from orchestrator.engine.step import Engine, StepResult
from orchestrator.names import IN_A_ROW, SKIPPED, WENT_BACK
from orchestrator.training.diagnosis import Diagnosis, diagnose
from orchestrator.training.health import Diverged, Health, RollBack
from tests.orchestrator.small_run import BATCH, build_engine, state_of, unchanged, write_checkpoint

SHARE = BATCH // 2  # slots of each of two ranks, in micro-batches of 5, 5 and 2
BAD_SLOT = 6  # it is in the second micro-batch
PARAMETER = "blocks.1.mlp.fc1.weight"
STEPS = ["label weight", "good", "gradient", "infinite loss", "good", "good"]
LR = 1e-2


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """All images and labels of a step, (24, ...)."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (BATCH, 1), generator=generator)


def local_batch(step: int) -> Batch:
    """This rank's slots of a step. Sample i of step t has the id 100 t + i."""
    mine = slice(dist.get_rank() * SHARE, (dist.get_rank() + 1) * SHARE)
    images, labels = (part[mine] for part in global_batch(step))
    slots = torch.arange(BATCH)[mine]
    ones = torch.ones(SHARE, 1)
    return Batch(
        step, 100 * step + slots, images, labels, ones, torch.ones(SHARE, dtype=torch.bool), slots, [], [""] * SHARE
    )


@contextmanager
def spoiled(kind: str, engine: Engine, batch: Batch) -> Iterator[None]:
    """Bring in something that is not finite, on one rank only, inside the context."""
    module, objective, hook = engine.deepspeed.module, engine.objective, None
    if kind == "label weight" and dist.get_rank() == 1:
        batch.weights[BAD_SLOT] = math.nan
    elif kind == "infinite loss" and dist.get_rank() == 1:
        # The gradient is finite: the infinite term does not depend on the logits.
        batch.weights[BAD_SLOT] = 2.0
        engine.objective = lambda logits, labels, weights: (
            objective(logits, labels, weights) + torch.where(weights[:, 0] == 2.0, math.inf, 0.0)
        )
    elif kind == "gradient" and dist.get_rank() == 0:
        hook = module.get_parameter(PARAMETER).register_hook(one_element_nan)
    elif kind == "output" and dist.get_rank() == 1:
        hook = module.get_submodule("blocks.1.attention.out").register_forward_hook(
            lambda layer, inputs, output: output * math.inf
        )
    try:
        yield
    finally:
        engine.objective = objective
        if hook is not None:
            hook.remove()


def one_element_nan(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient.view(-1)[-1] = math.nan
    return gradient


def step_on(engine: Engine, batch: Batch) -> StepResult:
    return engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, None, lr=LR)


def plain_norms(sgd: bool) -> list[float]:
    """Gradient norms of the good steps in plain PyTorch: float32, one process, whole batches."""
    import model
    from orchestrator.engine.optimizer import parameter_groups

    torch.manual_seed(0)
    vit = model.create_model(
        "ViT-Ti/16", num_classes=10, image_size=8, patch_size=2, depth=3, width=48, heads=3, mlp_dim=96
    )
    torch.nn.init.normal_(vit.head.weight, std=0.02)
    groups = parameter_groups(vit, 0.1, model.decay_mask(vit))
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=LR)
    norms = []
    for step, kind in enumerate(STEPS):
        if kind == "good":
            images, labels = global_batch(step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(vit(images / 127.5 - 1), labels[:, 0]).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)))
            optimizer.step()
    return norms


@pytest.mark.parametrize("sgd", [False, True], ids=["adamw", "sgd"])
def test_a_bad_step_changes_nothing(sgd: bool) -> None:
    norms = plain_norms(sgd)
    for rank in run_ranks(2, train_through_bad_steps, sgd):
        assert len(rank) == 8
        for (precision, stage), steps in rank.items():
            for kind, (applied, same, _) in zip(STEPS, steps, strict=True):
                assert (applied, same) == ((True, False) if kind == "good" else (False, True)), (precision, stage, kind)
            close = 1e-4 if precision == "float32" else 0.05
            assert [norm for applied, _, norm in steps if applied] == pytest.approx(norms, rel=close), (
                precision,
                stage,
            )


def train_through_bad_steps(sgd: bool) -> dict[tuple[str, int], list[tuple[bool, bool, float]]]:
    """By precision and stage, for each step: whether it was applied, whether nothing changed, and the gradient norm."""
    results = {}
    for precision in ("float32", "bf16"):
        for stage in range(4):
            engine = build_engine(stage, precision=precision, sgd=sgd, dropout=0.0)
            steps = results[precision, stage] = []
            for step, kind in enumerate(STEPS):
                batch, before = local_batch(step), state_of(engine)
                with spoiled(kind, engine, batch):
                    applied = bool(step_on(engine, batch).applied)
                steps.append((applied, unchanged(before, state_of(engine)), engine.gradient_norm()))
    return results


def test_a_masked_slot_cannot_spoil_a_step() -> None:
    """The masked slot has a white image, which makes this network's output NaN, and label weights that are NaN."""
    for benign, poisoned in run_ranks(2, losses_beside_a_masked_slot):
        assert all(math.isfinite(number) for number in benign)
        assert poisoned == benign


def losses_beside_a_masked_slot() -> list[list[float]]:
    results = []
    for poison in (False, True):
        engine = build_engine(2, dropout=0.0)
        engine.deepspeed.module.embedding.register_forward_pre_hook(
            lambda layer, inputs: (torch.where(inputs[0] == 1.0, math.nan, inputs[0]), *inputs[1:])
        )
        batch = local_batch(0)
        batch.images.clamp_(max=254)
        batch.valid[BAD_SLOT] = False
        if poison:
            batch.images[BAD_SLOT] = 255
            batch.weights[BAD_SLOT] = math.nan
        losses = [float(step_on(engine, batch).loss_sum) for _ in range(2)]
        results.append([*losses, engine.gradient_norm()])
    return results


EXPLAINED = {
    "label weight": Diagnosis("loss", [SHARE + BAD_SLOT]),
    "infinite loss": Diagnosis("loss", [SHARE + BAD_SLOT]),
    "gradient": Diagnosis(f"gradient of {PARAMETER}", []),
    "output": Diagnosis("output of blocks.1.attention.out", list(range(SHARE, BATCH))),
    "good": Diagnosis(None, []),
}


def test_the_diagnosis_names_tensor_and_samples() -> None:
    for rank in run_ranks(2, diagnoses):
        assert len(rank) == 3 * len(EXPLAINED)
        for (setting, kind), (found, same) in rank.items():
            assert (found, same) == (EXPLAINED[kind], True), setting


def diagnoses() -> dict[tuple[object, str], tuple[Diagnosis, bool]]:
    """By engine and kind of step: the diagnosis, and whether diagnosing changed nothing."""
    results: dict[tuple[object, str], tuple[Diagnosis, bool]] = {}
    for stage, options in [(0, {}), (2, {"checkpointing": "full", "precision": "bf16"}), (3, {})]:
        engine = build_engine(stage, dropout=0.0, **options)  # type: ignore[arg-type]
        step_on(engine, local_batch(1))
        for kind in EXPLAINED:
            batch, before = local_batch(0), state_of(engine)
            with spoiled(kind, engine, batch):
                found = diagnose(engine, batch, None)
            results[(stage, *options), kind] = found, unchanged(before, state_of(engine))
        assert bool(step_on(engine, local_batch(1)).applied)
    return results


def test_a_diagnosis_is_one_line() -> None:
    assert str(Diagnosis("output of norm", list(range(1000, 2203)))) == (
        "output of norm is not finite, nor is the loss of 1203 samples (1000, 1001, 1002, 1003, 1004 and 1,198 more)"
    )
    assert str(Diagnosis("gradient of head.bias", [])) == (
        "gradient of head.bias is not finite; the losses of all samples are finite"
    )
    assert "the repeated step is finite" in str(Diagnosis(None, []))


def test_too_many_in_a_row_go_back_once_and_then_stop(tmp_path: Path) -> None:
    reason = "step {}: 3 steps in a row skipped (training.max_bad_steps = 3): loss is not finite in {}"
    for rank in run_ranks(2, train_with_health, str(tmp_path / "run")):
        assert rank["went back"] == reason.format(9, "1 sample (818)")
        assert rank["restored"] == {SKIPPED: 2.0, IN_A_ROW: 0.0, WENT_BACK: 1.0}
        assert rank["same again"]
        assert rank["stopped"] == reason.format(9, "1 sample (818)") + "; going back to a checkpoint did not help"
        assert rank["in all"] == {SKIPPED: 5.0, IN_A_ROW: 3.0, WENT_BACK: 1.0}
        assert rank["a new process"] == {SKIPPED: 2.0, IN_A_ROW: 0.0, WENT_BACK: 0.0}


def train_with_health(run: str) -> dict[str, object]:
    """Steps 0 and 1 are bad, 2 to 5 good, the rest bad. Save after step 3, roll back, and train again from there."""
    results: dict[str, object] = {}
    engine = build_engine(3, dropout=0.0)
    health = Health(engine, 3)
    health.resume({})

    def train(steps: range) -> None:
        for step in steps:
            batch = local_batch(step)
            with spoiled("good" if step in (2, 3, 4, 5) else "label weight", engine, batch):
                health.stepped(step_on(engine, batch), batch, None)

    train(range(4))
    saved = health.metrics()
    write_checkpoint(engine, run, 4, saved)
    train(range(4, 6))
    there = state_of(engine)
    with pytest.raises(RollBack) as back:
        train(range(6, 20))
    results["went back"] = str(back.value)

    manifest = restore(engine, run)
    assert manifest is not None
    health.resume(saved)
    results["restored"] = health.metrics()
    train(range(4, 6))
    results["same again"] = unchanged(there, state_of(engine))
    with pytest.raises(Diverged) as stop:
        train(range(6, 20))
    results["stopped"] = str(stop.value)
    results["in all"] = health.metrics()

    another = Health(engine, 3)
    another.resume(saved)
    results["a new process"] = another.metrics()
    return results
