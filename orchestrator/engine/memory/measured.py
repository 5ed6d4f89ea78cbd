"""The memory that a model's activations really take on this device, measured with a few images.

The arithmetic of `model.cost.flops` counts what the encoder's blocks keep. A device may need more: workspaces, sizes
that the allocator rounds up, float32 copies on a CPU without bf16 products, the loss over many classes. So a copy of
the model passes a few images forward and backward, before DeepSpeed wraps the model itself.

On a GPU the passes are computed, and PyTorch's allocator reports their peak. On a CPU no allocator does. There the same
operations run on fake tensors, which have shapes but no contents and cost no arithmetic, and the bytes that would be
alive are summed.

This does not affect the run: the copy has its own parameters and gradients, and nothing draws random numbers. Blocks
are not compiled: compiling for sizes that are never used again takes minutes, and compiled blocks keep no more.
"""

import copy
import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import VisionTransformer, checkpoint_blocks
from model.layers.recompute import CheckpointMode
from orchestrator.engine.step import Objective, normalise

DID_NOT_FIT = 2**62  # bytes: stands for a peak that exceeded the device's memory


def measured_sizes(micro_batch: int) -> list[int]:
    """Numbers of images that represent a micro-batch: a quarter and a half of it; 1 and 2 of a small one.

    Two sizes separate the bytes per image from the fixed ones. They are large enough for activations to outweigh the
    rest, and small enough to fit if the arithmetic is wrong by a factor of two.
    """
    half = max(math.ceil(micro_batch / 2), min(2, micro_batch))
    return sorted({math.ceil(half / 2), half})


def measured_peaks(
    model: VisionTransformer,
    objective: Objective,
    checkpointing: CheckpointMode,
    micro_batch: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, int]:
    """Peak of the bytes besides parameters and gradients, in a forward and backward pass, by number of images.

    Args:
        model: on any device, in any dtype; it does not change.
        objective: loss of each sample.
        checkpointing: mode of activation checkpointing.
        micro_batch: images at once in the run.
        dtype, device: of the run's computations.

    Returns:
        The peak for each of `measured_sizes`; `DID_NOT_FIT` if the device had too little memory.
    """
    if device.type != "cuda":
        return _peaks_without_arithmetic(model, objective, checkpointing, micro_batch, dtype, device)
    try:
        return _peaks_of_allocator(model, objective, checkpointing, micro_batch, dtype, device)
    finally:  # the copy is gone here
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _twin(
    model: VisionTransformer, checkpointing: CheckpointMode, dtype: torch.dtype, device: torch.device
) -> VisionTransformer:
    """A copy of `model` whose parameters and gradients are zero; the model's parameters are not copied."""
    zeros = {id(p): nn.Parameter(torch.zeros(p.shape, dtype=dtype, device=device)) for p in model.parameters()}
    twin = copy.deepcopy(model, zeros)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as in the run, where gradients are part of the state
    checkpoint_blocks(twin, checkpointing)
    return twin.train()


def _forward_and_backward(
    model: VisionTransformer, objective: Objective, images: int, dtype: torch.dtype, device: torch.device
) -> None:
    side = model.config.image_size
    pixels = torch.zeros(images, 3, side, side, dtype=torch.uint8, device=device)
    seeds = torch.zeros(images, dtype=torch.int64, device=device) if model.config.dropout else None
    labels = torch.zeros(images, 1, dtype=torch.int64, device=device)
    weights = torch.ones(images, 1, device=device)
    objective(model(normalise(pixels, dtype), seeds), labels, weights).sum().backward()


def _peaks_of_allocator(
    model: VisionTransformer,
    objective: Objective,
    checkpointing: CheckpointMode,
    micro_batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, int]:
    twin = _twin(model, checkpointing, dtype, device)
    peaks = {}
    before = torch.cuda.memory_allocated(device)  # once: libraries keep what they allocate in the first pass
    for images in measured_sizes(micro_batch):
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _forward_and_backward(twin, objective, images, dtype, device)
            peaks[images] = torch.cuda.max_memory_allocated(device) - before
        except torch.OutOfMemoryError:  # also a result: the other ranks wait for this one's
            peaks[images] = DID_NOT_FIT
    return peaks


def _peaks_without_arithmetic(
    model: VisionTransformer,
    objective: Objective,
    checkpointing: CheckpointMode,
    micro_batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, int]:
    peaks = {}
    with FakeTensorMode():
        twin = _twin(model, checkpointing, dtype, device)
        given = [tensor for p in twin.parameters() for tensor in (p, p.grad) if tensor is not None]
        for images in measured_sizes(micro_batch):
            with LiveBytes(given) as live:
                _forward_and_backward(twin, objective, images, dtype, device)
            peaks[images] = live.peak
    return peaks


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that operations allocate inside the context.

    Args:
        given: tensors whose storages are not counted; they must outlive the context.

    Attributes:
        peak: the largest count so far.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage._cdata)
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._alive)
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self._alive -= size
