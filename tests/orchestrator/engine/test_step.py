"""The training step compared with a plain PyTorch loop, over world sizes, ZeRO stages and precisions."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from data import SampleOrder, open_index
from infra.local.ranks import run_ranks
from tests.orchestrator.small_run import BATCH, Curve, build_engine, train_digits

STEPS = 20


@pytest.fixture(scope="module")
def trained(digits: Path) -> Callable[..., list[Curve]]:
    """trained(world_size, stage): the curves of all ranks in float32, trained once for all tests of this file."""

    @cache
    def curves(world_size: int, stage: int) -> list[Curve]:
        return run_ranks(world_size, train_digits, str(digits / "train"), stage, STEPS)

    return curves


@pytest.fixture(scope="module")
def alone(trained: Callable[..., list[Curve]]) -> Curve:
    return trained(1, 1)[0]


def plain_loop(shards: str, steps: int) -> tuple[list[float], list[float]]:
    """Losses and norms of the same training in plain PyTorch: one process, whole batches, torch's AdamW, clipping."""
    import model
    from data import Augment, Loader
    from orchestrator.engine.optimizer import parameter_groups
    from orchestrator.training.classify import dropout_seeds

    torch.manual_seed(0)
    vit = model.create_model(
        "ViT-Ti/16", num_classes=10, image_size=8, patch_size=2, depth=3, width=48, heads=3, mlp_dim=96, dropout=0.1
    )
    torch.nn.init.normal_(vit.head.weight, std=0.02)
    index = open_index(shards)
    order = SampleOrder(index, seed=1, batch_size=BATCH)
    optimizer = torch.optim.AdamW(parameter_groups(vit, 0.1, model.decay_mask(vit)), lr=1e-3)
    losses, norms = [], []
    loader = Loader(
        index,
        order,
        rank=0,
        world_size=1,
        image_size=8,
        augment=Augment(crop="inception", min_area=0.5),
        seed=1,
        stop_step=steps,
        threads=1,
    )
    with loader:
        for batch in loader:
            keep = batch.valid
            pixels = batch.images[keep].float() / 127.5 - 1
            seeds = dropout_seeds(1, batch.step, batch.slots, BATCH)[keep]
            loss = torch.nn.functional.cross_entropy(vit(pixels, seeds), batch.labels[keep, 0])
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)))
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses, norms


def test_one_worker_equals_a_plain_pytorch_loop(digits: Path, alone: Curve) -> None:
    losses, norms = plain_loop(str(digits / "train"), STEPS)
    assert alone.losses == pytest.approx(losses, rel=1e-4)
    assert alone.norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_world_size_is_no_part_of_the_recipe(
    trained: Callable[..., list[Curve]], alone: Curve, world_size: int
) -> None:
    ranks = trained(world_size, 1)
    for step in range(STEPS):
        assert [i for rank in ranks for i in rank.ids[step]] == alone.ids[step]
    assert ranks[0].losses == pytest.approx(alone.losses, rel=1e-4)


def test_sample_ids_are_the_orders(digits: Path, alone: Curve) -> None:
    order = SampleOrder(open_index(str(digits / "train")), seed=1, batch_size=BATCH)
    assert alone.ids == [[i for i in order.batch(step) if i >= 0] for step in range(STEPS)]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_compute_the_same(trained: Callable[..., list[Curve]], alone: Curve, stage: int) -> None:
    curve = trained(2, stage)[0]
    assert curve.losses == pytest.approx(alone.losses, rel=1e-5)
    assert curve.norms == pytest.approx(alone.norms, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_follows_float32(digits: Path, trained: Callable[..., list[Curve]], alone: Curve, stage: int) -> None:
    low = run_ranks(2, train_bf16, str(digits / "train"), stage, 12)[0]
    assert low.losses != trained(2, stage)[0].losses[:12]
    assert low.losses == pytest.approx(alone.losses[:12], rel=0.02)


def train_bf16(shards: str, stage: int, steps: int) -> Curve:
    return train_digits(shards, stage, steps, precision="bf16")


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_activation_checkpointing_under_zero_3_changes_nothing(digits: Path, alone: Curve, mode: str) -> None:
    curve = run_ranks(2, train_checkpointed, str(digits / "train"), mode)[0]
    assert curve.losses == pytest.approx(alone.losses[:8], rel=1e-5)


def train_checkpointed(shards: str, mode: str) -> Curve:
    return train_digits(shards, 3, 8, checkpointing=mode)


def test_a_masked_slot_has_no_effect(digits: Path) -> None:
    with_poison, without = run_ranks(1, gradients_with_and_without_poison)[0]
    assert with_poison == without


def gradients_with_and_without_poison() -> tuple[list[float], list[float]]:
    """Losses of three steps on the same valid images: with pixels and labels in the masked slots, and without."""
    results = []
    for poison in (True, False):
        engine = build_engine(1, dropout=0.0)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.tensor([[1], [2], [3], [4], [5]])
        if not poison:
            images[3:] = 0
            labels[3:] = -1
        valid = torch.tensor([True, True, True, False, False])
        losses = []
        for _ in range(3):
            result = engine.train_step(images, labels, torch.ones(5, 1), valid, None, lr=1e-2)
            losses.append(float(result.loss_sum))
            assert float(result.valid) == 3
        results.append(losses)
    return results[0], results[1]


@pytest.mark.parametrize("sgd", [False, True])
def test_clipping_inside_the_optimizer_is_clipping(sgd: bool) -> None:
    """Stage 0 in float32: the weights equal those of a torch optimizer on gradients that were clipped before."""
    run_ranks(1, clipped_steps, sgd)


def clipped_steps(sgd: bool) -> None:
    """Compare the weights after three steps with those computed by hand."""
    engine = build_engine(0, dropout=0.0, sgd=sgd)
    ours = engine.deepspeed.module
    twin = copy.deepcopy(ours)
    twins = dict(zip(ours.parameters(), twin.parameters(), strict=True))
    groups = [
        {"params": [twins[p] for p in group["params"]], "weight_decay": group["weight_decay"]}
        for group in engine.deepspeed.basic_optimizer.param_groups
    ]
    by_hand = torch.optim.SGD(groups, lr=1e-2, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=1e-2)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, valid = torch.tensor([[1], [2], [3], [4], [5]]), torch.ones(5, dtype=torch.bool)
    for factor in (1000.0, 1.0, 0.001):  # gradient norms far above 1, about 1 and far below
        engine.objective = lambda logits, labels, weights, factor=factor: (
            factor * torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="none")
        )
        engine.train_step(images, labels, torch.ones(5, 1), valid, None, lr=1e-2)
        loss = factor * torch.nn.functional.cross_entropy(twin(images.float() / 127.5 - 1), labels[:, 0])
        by_hand.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        assert engine.gradient_norm() == pytest.approx(float(norm), rel=1e-4)
        by_hand.step()
    for name, found in ours.named_parameters():
        if sgd or not name.endswith(
            "qkv.bias"
        ):  # the gradient of the keys' biases is only rounding, which Adam amplifies
            torch.testing.assert_close(found, twins[found], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_reduced_in_bf16_and_in_float32(digits: Path, stage: int) -> None:
    """Both follow one bf16 worker, which reduces nothing; float32 sums follow it more closely."""
    url = str(digits / "train")
    alone = run_ranks(1, train_bf16, url, stage, 12)[0]
    exact = run_ranks(4, train_reduced, url, stage, "float32")[0]
    rounded = run_ranks(4, train_reduced, url, stage, "bf16")[0]
    assert exact.losses != rounded.losses
    assert exact.losses == pytest.approx(alone.losses, rel=0.01)
    assert rounded.losses == pytest.approx(alone.losses, rel=0.02)


def train_reduced(shards: str, stage: int, gradient_reduction: str) -> Curve:
    return train_digits(shards, stage, 12, precision="bf16", gradient_reduction=gradient_reduction)
