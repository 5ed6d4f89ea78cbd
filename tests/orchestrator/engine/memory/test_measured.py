"""Measured memory compared with the arithmetic, where that is exact; and measuring leaves nothing behind."""

import gc

import pytest
import torch
from torch import Tensor

from model import VisionTransformer, checkpoint_blocks, create_model
from model.cost.flops import activation_bytes
from model.layers.recompute import MODES, CheckpointMode
from model.objectives import dense_targets, sigmoid_cross_entropy
from orchestrator.engine.memory.measured import measured_peaks, measured_sizes

CPU = torch.device("cpu")


def objective(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return sigmoid_cross_entropy(logits, dense_targets(labels, weights, logits.shape[1]))


def small_model(depth: int = 3, dropout: float = 0.0) -> VisionTransformer:
    return create_model("Ti/16", num_classes=3, image_size=128, depth=depth, dropout=dropout)


@pytest.mark.parametrize(
    ("micro_batch", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2]), (5, [2, 3]), (64, [16, 32])]
)
def test_sizes(micro_batch: int, sizes: list[int]) -> None:
    assert measured_sizes(micro_batch) == sizes


@pytest.mark.parametrize("mode", MODES)
def test_an_image_needs_what_the_arithmetic_says(mode: CheckpointMode) -> None:
    model = small_model()
    peaks = measured_peaks(model, objective, mode, 16, dtype=torch.float32, device=CPU)
    assert list(peaks) == [4, 8]
    pixels = 3 * 128**2 * (1 + 4)  # the image in uint8 and float32, which the arithmetic leaves out
    expected = activation_bytes(model.config, mode, 4) + pixels
    assert (peaks[8] - peaks[4]) / 4 == pytest.approx(expected, rel=0.01)


def test_memory_that_the_arithmetic_leaves_out_is_measured() -> None:
    """A loss that keeps a megabyte per image."""

    def large(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return (logits[:, :1] * torch.ones(1, 250_000)).square().sum(1)

    model, each = small_model(depth=1), []
    for loss in (objective, large):
        peaks = measured_peaks(model, loss, "none", 2, dtype=torch.float32, device=CPU)
        each.append(peaks[2] - peaks[1])
    assert each[1] > each[0] + 1_000_000


def test_nothing_is_left_behind() -> None:
    model = small_model(depth=1, dropout=0.1)
    checkpoint_blocks(model, "selective")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    gc.collect()
    alive = sum(isinstance(thing, Tensor) for thing in gc.get_objects())
    measured_peaks(model, objective, "full", 2, dtype=torch.bfloat16, device=CPU)
    gc.collect()
    assert sum(isinstance(thing, Tensor) for thing in gc.get_objects()) == alive
    assert torch.equal(torch.get_rng_state(), random)
    assert model.checkpointing == "selective"
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_the_allocator_agrees(mode: CheckpointMode) -> None:
    model, gpu = small_model(), torch.device("cuda")
    before = torch.cuda.memory_allocated()
    peaks = measured_peaks(model, objective, mode, 64, dtype=torch.bfloat16, device=gpu)
    assert (peaks[32] - peaks[16]) / 16 == pytest.approx(activation_bytes(model.config, mode, 2), rel=0.2)
    assert torch.cuda.memory_allocated() - before < 2**26, "more than libraries' workspaces is left"
