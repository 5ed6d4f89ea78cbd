"""The choice of the fastest step that fits the device's memory: what to recompute, and how many images at once.

Each checkpointing mode has one candidate: the largest equal part of the local batch that fits. Arithmetic compares
their times, expressed in FLOPs at the best speed. A step of A micro-batches of m images costs

    A * (1 + repeated share) * (m * training FLOPs of an image + depth * fixed cost of a pass through a block)

The fixed cost makes small micro-batches slow: with t tokens, a pass runs at t / (t + t_half) of its best speed. t_half
is the number of tokens whose arithmetic takes as long as the fixed cost.

The memory of the fastest candidate is measured (`measured.py`), unless there is room for several times as much. From
then on the larger of arithmetic and measurement counts. If it leaves room for fewer images, all candidates are compared
again. So each mode is measured at most once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from model import ViTConfig, training_flops
from model.cost.flops import activation_bytes, recomputed_flops
from model.layers.recompute import MODES, CheckpointMode
from orchestrator.engine.memory.needed import ACTIVATION_SHARE, exchange_bytes, state_bytes
from orchestrator.job.sections import Parallel
from orchestrator.wording import count

FIXED_FLOPS = {"cuda": 1.2e11, "cpu": 1e9}
"""Fixed cost of a pass through a block, forward and backward, in FLOPs, by kind of device.

GPU: each product ends with a wave of tiles that is half empty on average; 132 multiprocessors x 128 x 256 outputs x 7 D
inputs x 3 products is 1.2e11 in H/14. CPU: a hundred operations of 10 us at 150 GFLOP/s, and reading the weights. These
are estimates; they matter only if few images fit. Step times T1 and T2 of one device at micro-batches m1 < m2
(`benchmarks/step`) give a measured value: (m2 * T1 - m1 * T2) / (T2 - T1) * training_flops / depth."""

CHEAP_SHARE = 0.05
"""Share of norms, GELU and sums in a step's time, once forward. They move about 10 MB per image through each block of
H/14. At an A100's or H100's ratio of arithmetic to bandwidth, that takes a twentieth of the time of the products."""

AMPLE_FACTOR = 6
"""With room for so many times the bytes of the arithmetic, nothing is measured. It exceeds all of `needed.HEAP`."""


@dataclass(frozen=True)
class WorkerShare:
    """What one worker has to do, and its memory.

    Attributes:
        parameters: number of parameters of the whole model.
        local_batch: slots of this worker per step.
        world_size: number of workers.
        memory: bytes that the worker may use: the smallest number of all workers, so that all make the same choice.
        device: where the worker computes.
        averaged: whether it holds an average of the weights.
    """

    parameters: int
    local_batch: int
    world_size: int
    memory: int
    device: torch.device
    averaged: bool = False


Measure = Callable[[CheckpointMode, int], Mapping[int, int]]
"""(mode, micro_batch) -> peak of bytes by number of images, as `measured_peaks` returns it; the same on all ranks."""


@dataclass(frozen=True)
class Choice:
    """How to take a step.

    Attributes:
        checkpointing: mode of activation checkpointing.
        micro_batch: images at once.
        why: the reason in one line; empty if the job left no choice, or if there is ample memory.
    """

    checkpointing: CheckpointMode
    micro_batch: int
    why: str


@dataclass(frozen=True)
class _Need:
    """Activations of n images take `fixed + n * each` bytes."""

    fixed: int
    each: int

    def of(self, images: int) -> int:
        """Bytes of so many images."""
        return self.fixed + images * self.each

    def with_measured(self, peaks: Mapping[int, int]) -> "_Need":
        """The smallest need that covers every measured peak, with at least `each` bytes an image."""
        (fewest, low), (most, high) = min(peaks.items()), max(peaks.items())
        slope = math.ceil((high - low) / (most - fewest)) if most > fewest else math.ceil(high / most)
        each = max(self.each, slope)
        return _Need(max(0, *(peak - images * each for images, peak in peaks.items())), each)


@dataclass(frozen=True)
class _Room:
    """Bytes that activations may take, and bytes that are needed in their place at the end of the backward pass."""

    activations: int
    at_the_end: int

    def missing(self, need: _Need, images: int) -> int:
        """Bytes by which the room is too small; zero or negative if the images fit."""
        return max(need.of(images), self.at_the_end) - self.activations


def choose(config: ViTConfig, parallel: Parallel, share: WorkerShare, measure: Measure) -> Choice:
    """Choose what `parallel` leaves open. All ranks must call it, and `measure` is called in the same order on all.

    Raises:
        ValueError: nothing that the job allows fits. The message says what would fit.
    """
    wanted = parallel.micro_batch
    if wanted != "auto" and parallel.activation_checkpointing != "auto":
        return Choice(parallel.activation_checkpointing, wanted, "")

    modes = MODES if parallel.activation_checkpointing == "auto" else (parallel.activation_checkpointing,)
    room = _room(share, parallel, share.world_size)
    by_arithmetic = {mode: _need_by_arithmetic(config, mode, parallel) for mode in MODES}
    needs = dict(by_arithmetic)
    measured: set[CheckpointMode] = set()

    while True:
        parts = {mode: _micro_batch(needs[mode], room, wanted, share.local_batch) for mode in modes}
        costs = {mode: step_flops(config, mode, part, share) for mode, part in parts.items() if part}
        if not costs:
            raise ValueError(_too_small(config, parallel, share, needs))
        best = min(costs, key=costs.__getitem__)
        if not measured and AMPLE_FACTOR * needs[best].of(parts[best]) <= room.activations:
            return Choice(best, parts[best], "")
        if best in measured:
            break
        needs[best] = needs[best].with_measured(measure(best, parts[best]))
        measured.add(best)

    others = [
        f"{mode} {costs[mode] / costs[best]:.2f} times as long" if mode in costs else f"{mode} does not fit"
        for mode in modes
        if mode != best
    ]
    part, need = parts[best], needs[best]
    taken = f"{need.of(part) / 2**30:.2f} of {room.activations / 2**30:.2f} GiB for activations"
    image = f"{need.each / 2**20:.1f} MiB an image (by arithmetic {by_arithmetic[best].each / 2**20:.1f})"
    why = "; ".join([taken, image, ", ".join(others)] if others else [taken, image])
    passes = math.ceil(share.local_batch / part)
    return Choice(best, part, f"activation_checkpointing {best}, {passes} x {count(part, 'image')} a step: {why}")


def step_flops(config: ViTConfig, checkpointing: CheckpointMode, micro_batch: int, share: WorkerShare) -> float:
    """The time of a step's passes, in FLOPs at the best speed."""
    training = training_flops(config)
    repeated = 0.0 if checkpointing == "none" else CHEAP_SHARE + recomputed_flops(config, checkpointing) / training
    of_pass = micro_batch * training + config.depth * FIXED_FLOPS[share.device.type]
    return math.ceil(share.local_batch / micro_batch) * (1 + repeated) * of_pass


def _need_by_arithmetic(config: ViTConfig, mode: CheckpointMode, parallel: Parallel) -> _Need:
    return _Need(0, activation_bytes(config, mode, 2 if parallel.precision == "bf16" else 4))


def _room(share: WorkerShare, parallel: Parallel, world_size: int) -> _Room:
    beside, at_the_end = exchange_bytes(share.parameters, parallel, share.device)
    taken = state_bytes(share.parameters, parallel, world_size, averaged=share.averaged) + beside
    return _Room(int(ACTIVATION_SHARE * share.memory) - taken, at_the_end)


def _micro_batch(need: _Need, room: _Room, wanted: int | str, local_batch: int) -> int:
    """The micro-batch that the job sets, or for `auto` the largest equal part of the local batch; 0 if none fits."""
    if isinstance(wanted, int):
        images = min(wanted, local_batch)
        return images if room.missing(need, images) <= 0 else 0
    if room.missing(need, 1) > 0:
        return 0
    most = (room.activations - need.fixed) // need.each
    return math.ceil(local_batch / math.ceil(local_batch / most))


def _too_small(config: ViTConfig, parallel: Parallel, share: WorkerShare, needs: Mapping[CheckpointMode, _Need]) -> str:
    """The error message: what is needed, and the smallest change of the settings that would fit."""
    mode = "full" if parallel.activation_checkpointing == "auto" else parallel.activation_checkpointing
    images = 1 if parallel.micro_batch == "auto" else min(parallel.micro_batch, share.local_batch)

    def missing(workers: int, stage: int, mode: CheckpointMode, images: int) -> int:
        room = _room(share, parallel.model_copy(update={"zero_stage": stage}), workers)
        return room.missing(needs[mode], images)

    def advice() -> str:
        for workers in (share.world_size << doubled for doubled in range(11)):
            for stage in range(parallel.zero_stage, 4):
                for smaller_mode, fewer in ((mode, images), ("full", images), ("full", 1)):
                    if missing(workers, stage, smaller_mode, fewer) <= 0:
                        changes = {
                            f"{workers} workers": workers != share.world_size,
                            f"parallel.zero_stage: {stage}": stage != parallel.zero_stage,
                            "parallel.activation_checkpointing: auto": smaller_mode != mode,
                            "parallel.micro_batch: auto": fewer != images,
                        }
                        return " and ".join(change for change, made in changes.items() if made)
        return "a device with more memory"

    needed = share.memory + missing(share.world_size, parallel.zero_stage, mode, images) / ACTIVATION_SHARE
    return (
        f"{config.name} needs {needed / 2**30:.1f} GiB a worker for {count(images, 'image')} at once, and a worker has "
        f"{share.memory / 2**30:.1f}: use {advice()}"
    )
