"""The fastest way to take a step that fits the memory of the device: what to recompute, and how many images at once.

Each checkpointing mode has one candidate: the largest equal part of the local batch that fits. Their times are compared
by arithmetic, in FLOPs that take as long. A step of A micro-batches of m images costs

    A * (1 + repeated share) * (m * training FLOPs of an image + depth * fixed cost of a pass through a block)

The fixed cost makes small micro-batches slow: with t tokens, a pass runs at t / (t + t_half) of its best speed, where
t_half is the number of tokens whose arithmetic takes as long as the fixed cost.

The fastest candidate is tried (`measured.py`), unless there is room for several times as much. Of arithmetic and trial
the larger counts from then on; if that leaves room for fewer images, all candidates are compared again. So there are
at most as many trials as modes.
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

# The fixed cost of a pass through a block, forward and backward, in FLOPs. GPU: each product ends with a wave of tiles
# that is half empty on average; 132 multiprocessors x 128 x 256 outputs x 7 D inputs x 3 products is 1.2e11 in H/14.
# CPU: a hundred operations of 10 us at 150 GFLOP/s, and reading the weights. Estimates, which matter only where few
# images fit. From step times T1 and T2 at micro-batches m1 < m2 of one device (`benchmarks/step`):
#     (m2 * T1 - m1 * T2) / (T2 - T1) * training_flops / depth
FIXED_FLOPS = {"cuda": 1.2e11, "cpu": 1e9}
# Norms, GELU and sums, once forward, as a share of a step: they move about 10 MB an image through each block of H/14,
# which at the ratio of arithmetic to bandwidth of an A100 or H100 takes a twentieth of the time of the products.
CHEAP_SHARE = 0.05
AMPLE_FACTOR = 6  # times what arithmetic says, more than `memory.HEAP`: room for this much makes a trial superfluous


@dataclass(frozen=True)
class WorkerShare:
    """A rank's share of a run.

    Attributes:
        parameters: of the whole model.
        local_batch: slots of this rank in a step.
        world_size: ranks of the run.
        memory: bytes that it may count on; the least of all ranks', so that all choose alike.
    """

    parameters: int
    local_batch: int
    world_size: int
    memory: int
    device: torch.device


Measure = Callable[[CheckpointMode, int], Mapping[int, int]]
"""(mode, micro_batch) -> most bytes alive by number of images, as `measured_peaks` returns, the same on all ranks."""


@dataclass(frozen=True)
class Choice:
    """How a step is taken.

    Attributes:
        why: one line for people; empty where the job left no choice, or memory is plenty.
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
        return self.fixed + images * self.each

    def with_measured(self, peaks: Mapping[int, int]) -> "_Need":
        """The least need with at least these bytes an image that covers every peak."""
        (fewest, low), (most, high) = min(peaks.items()), max(peaks.items())
        slope = math.ceil((high - low) / (most - fewest)) if most > fewest else math.ceil(high / most)
        each = max(self.each, slope)
        return _Need(max(0, *(peak - images * each for images, peak in peaks.items())), each)


@dataclass(frozen=True)
class _Room:
    """What activations may take on a device, and what needs room in their place at the end of the backward pass."""

    activations: int
    at_the_end: int

    def missing(self, need: _Need, images: int) -> int:
        """Bytes that are short; not positive where the images fit."""
        return max(need.of(images), self.at_the_end) - self.activations


def choose(config: ViTConfig, parallel: Parallel, share: WorkerShare, measure: Measure) -> Choice:
    """Choose what `parallel` leaves open. `trial` is asked once for each mode at most, on all ranks alike.

    Raises:
        ValueError: nothing that the job allows fits; says what would.
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

    part, need = parts[best], needs[best]
    others = [
        f"{mode} {costs[mode] / costs[best]:.2f} times as long" if mode in costs else f"{mode} does not fit"
        for mode in modes
        if mode != best
    ]
    taken = f"{need.of(part) / 2**30:.2f} of {room.activations / 2**30:.2f} GiB for activations"
    image = f"{need.each / 2**20:.1f} MiB an image (by arithmetic {by_arithmetic[best].each / 2**20:.1f})"
    why = "; ".join([taken, image, ", ".join(others)] if others else [taken, image])
    passes = math.ceil(share.local_batch / part)
    return Choice(best, part, f"activation_checkpointing {best}, {passes} x {count(part, 'image')} a step: {why}")


def step_flops(config: ViTConfig, checkpointing: CheckpointMode, micro_batch: int, share: WorkerShare) -> float:
    """The time of a step's passes, as FLOPs at the best speed."""
    training = training_flops(config)
    repeated = 0.0 if checkpointing == "none" else CHEAP_SHARE + recomputed_flops(config, checkpointing) / training
    of_pass = micro_batch * training + config.depth * FIXED_FLOPS[share.device.type]
    return math.ceil(share.local_batch / micro_batch) * (1 + repeated) * of_pass


def _need_by_arithmetic(config: ViTConfig, mode: CheckpointMode, parallel: Parallel) -> _Need:
    return _Need(0, activation_bytes(config, mode, 2 if parallel.precision == "bf16" else 4))


def _room(share: WorkerShare, parallel: Parallel, world_size: int) -> _Room:
    beside, at_the_end = exchange_bytes(share.parameters, parallel, share.device)
    taken = state_bytes(share.parameters, parallel, world_size) + beside
    return _Room(int(ACTIVATION_SHARE * share.memory) - taken, at_the_end)


def _micro_batch(need: _Need, room: _Room, wanted: int | str, local_batch: int) -> int:
    """The number of images that is wanted, or for `auto` the largest equal part of the local batch; 0 if too many."""
    if isinstance(wanted, int):
        images = min(wanted, local_batch)
        return images if room.missing(need, images) <= 0 else 0
    if room.missing(need, 1) > 0:
        return 0
    most = (room.activations - need.fixed) // need.each
    return math.ceil(local_batch / math.ceil(local_batch / most))


def _too_small(config: ViTConfig, parallel: Parallel, share: WorkerShare, needs: Mapping[CheckpointMode, _Need]) -> str:
    """What is needed, and what would fit: the first of the settings that change least."""
    mode = "full" if parallel.activation_checkpointing == "auto" else parallel.activation_checkpointing
    images = 1 if parallel.micro_batch == "auto" else min(parallel.micro_batch, share.local_batch)

    def missing(workers: int, stage: int, mode: CheckpointMode, images: int) -> int:
        room = _room(share, parallel.model_copy(update={"zero_stage": stage}), workers)
        return room.missing(needs[mode], images)

    def advice() -> str:
        for workers in (share.world_size << doubled for doubled in range(11)):
            for stage in range(parallel.zero_stage, 4):
                for less_kept, fewer in ((mode, images), ("full", images), ("full", 1)):
                    if missing(workers, stage, less_kept, fewer) <= 0:
                        changes = {
                            f"{workers} workers": workers != share.world_size,
                            f"parallel.zero_stage: {stage}": stage != parallel.zero_stage,
                            "parallel.activation_checkpointing: auto": less_kept != mode,
                            "parallel.micro_batch: auto": fewer != images,
                        }
                        return " and ".join(change for change, made in changes.items() if made)
        return "a device with more memory"

    needed = share.memory + missing(share.world_size, parallel.zero_stage, mode, images) / ACTIVATION_SHARE
    return (
        f"{config.name} needs {needed / 2**30:.1f} GiB a worker for {count(images, 'image')} at once and has "
        f"{share.memory / 2**30:.1f}: use {advice()}"
    )
