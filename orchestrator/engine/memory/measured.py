"""A short trial on this device: how much memory a model's activations really take.

The arithmetic of `model.cost.flops` counts what the encoder's blocks keep. A device may take more: workspaces, sizes
rounded up by the allocator, float32 copies on a CPU without bf16 products, the loss over many classes. So a copy of the
model passes a few images forward and backward, before DeepSpeed wraps the model itself.

On a GPU the passes are computed, and PyTorch's allocator tells their peak. No allocator tells on a CPU. There the same
operations are carried out on fake tensors, which have shapes and no contents and cost no arithmetic, and the bytes that
would be alive are added up.

The run does not notice: the copy has parameters and gradients of its own, and nothing draws random numbers. Blocks are
not compiled: compiling for sizes that are never used again takes minutes, and compiled blocks keep no more.
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

DID_NOT_FIT = 2**62  # bytes: what did not fit


def measured_sizes(micro_batch: int) -> list[int]:
    """Images of the passes that stand for a micro-batch: a quarter and a half of it; at least 1 and 2, if it has two.

    Two sizes tell what an image adds from what is there anyway. They are large enough for activations to outweigh all
    else, and leave a factor of two for the arithmetic to be wrong.
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
    """Most bytes alive at once beside parameters and gradients, in a forward and backward pass, by number of images.

    Args:
        model: on any device, in any dtype; it stays as it is.
        objective: loss of each sample.
        micro_batch: what `measured_sizes` stand for.
        dtype, device: what the run computes in and on.

    Returns:
        for each size of `measured_sizes`; `DID_NOT_FIT` where the device had too little memory.
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
    """A copy of `model` with zeros for parameters and gradients, made without copying its parameters first."""
    zeros = {id(p): nn.Parameter(torch.zeros(p.shape, dtype=dtype, device=device)) for p in model.parameters()}
    twin = copy.deepcopy(model, zeros)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as in the run, where they are part of the state
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
    before = torch.cuda.memory_allocated(device)  # once: what libraries allocate in the first pass, they keep
    for images in measured_sizes(micro_batch):
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _forward_and_backward(twin, objective, images, dtype, device)
            peaks[images] = torch.cuda.max_memory_allocated(device) - before
        except torch.OutOfMemoryError:  # an answer, and no reason to leave the other ranks waiting for theirs
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
    """Adds up the bytes of the storages that operations make while it is entered, from their birth to their death.

    Args:
        given: tensors that were there before; their storages, which must outlive this, are not counted.

    Attributes:
        peak: the most bytes alive at once, so far.
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
