"""What the ranks of a step send each other: a table, and the count of a real step that it was taken from.

DeepSpeed's stages do not send what the ZeRO paper says (Rajbhandari et al. 2020, section 7). The paper has stages 1 and
2 reduce-scatter gradients; DeepSpeed's all-reduce them, and every rank throws away what is not its own. `tally` runs
the real `orchestrator.engine.step.Engine` and records every collective below torch.distributed, with its bytes and the
phase of the step. The arithmetic of `scaling/model.py` uses `TRAFFIC`, which a test compares with a fresh count.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import model
import orchestrator.engine.step
from benchmarks.step.task import OPTIMIZER, synthetic
from model.objectives import dense_targets, sigmoid_cross_entropy
from orchestrator.engine.step import Engine
from orchestrator.job.sections import Parallel

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
KINDS: dict[str, Kind] = {
    "c10d::allreduce_": "all_reduce",
    "c10d::_allgather_base_": "all_gather",
    "c10d::_reduce_scatter_base_": "reduce_scatter",
}
BEFORE = "before"  # the forward pass: the sum of valid samples


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one phase of a step.

    Attributes:
        size: bytes a parameter of the model, of all calls together: of what is reduced, of what is gathered, or of
            what is reduced and scattered, before it is divided by the ranks.
        calls: how many there are with H/14 and the engine's bucket sizes.
        every: whether they come with each micro-batch, or once a step.
        hides: what of the computation they run beside on a GPU, where `overlap_comm` is on; "nothing": it waits.
    """

    kind: Kind
    phase: str
    size: float
    calls: int
    every: Literal["micro_batch", "step"]
    hides: Literal["forward", "backward", "nothing"]


# What hides is read in DeepSpeed 0.19.8's code; all else is what `tally` counts, of bf16.
TRAFFIC: Mapping[int, tuple[Traffic, ...]] = {
    1: (
        # BF16_Optimizer: `allreduce_gradients` of the engine begins when the last backward pass has ended. Its bucket
        # is a constant of 5e8 gradients, which the count cannot shrink: H/14 makes two calls, one latency more.
        Traffic("all_reduce", "backward", 2.0, 1, "step", "nothing"),
        # The new weights: one call a parameter group, decayed and not, after the update.
        Traffic("all_gather", "optimizer", 2.0, 2, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
    ),
    2: (
        # `average_tensor`, on a stream of its own, of a bucket as it is full. At the end of every backward pass
        # `independent_gradient_partition_epilogue` waits for it.
        Traffic("all_reduce", "backward", 2.0, 15, "micro_batch", "backward"),
        Traffic("all_gather", "optimizer", 2.0, 2, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
        Traffic("all_reduce", "optimizer", 0.0, 3, "step", "nothing"),  # is it finite? and the norm
    ),
    3: (
        # `fetch_sub_module`: a bucket of 5e7 weights ahead. The backward pass finds them still there, since H/14 has
        # fewer weights than `stage3_max_live_parameters` and `stage3_max_reuse_distance`.
        Traffic("all_gather", "forward", 2.0, 13, "micro_batch", "forward"),
        # `__reduce_and_partition_ipg_grads`, on a stream of its own, of a bucket as it is full.
        Traffic("reduce_scatter", "backward", 2.0, 15, "micro_batch", "backward"),
        # Weights below `stage3_param_persistence_threshold`, norms and biases, which stay with all: one call each.
        Traffic("all_gather", "optimizer", 0.0, 261, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
        Traffic("all_reduce", "optimizer", 0.0, 2, "step", "nothing"),
    ),
}


@dataclass(frozen=True)
class Counted:
    """Of one step: bytes a parameter, and the number of calls."""

    kind: Kind
    phase: str
    size: float
    calls: int


def expected(stage: int, micro_batches: int) -> list[Counted]:
    """What `TRAFFIC` says of a step of H/14."""
    times = {"step": 1, "micro_batch": micro_batches}
    return [Counted(t.kind, t.phase, times[t.every] * t.size, times[t.every] * t.calls) for t in TRAFFIC[stage]]


# The network that is counted: H/14's depth and shape at a tenth of its width, and so a hundredth of its parameters. All
# sizes that DeepSpeed compares with numbers of parameters are a hundredth as well, so that as many collectives happen.
SHRUNK = 100
SIZES = {"width": 128, "mlp_dim": 512, "representation_size": 128, "num_classes": 1829}
PIXELS = {"image_size": 16, "patch_size": 4}
DEFAULTS = {  # DeepSpeed's, in elements
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}


class _Recorder(TorchDispatchMode):
    """Notes collectives as torch's dispatcher passes them on. Stands in for `Phases`, and so knows the phase."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Kind, str, int]] = []
        self._phase = BEFORE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            whole = max(_tensors(args), key=lambda tensor: tensor.numel())  # not a rank's shard of it
            self.seen.append((KINDS[func.name()], self._phase, whole.numel() * whole.element_size()))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        self._phase = phase
        yield
        self._phase = BEFORE


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def tally(stage: int, micro_batches: int) -> list[Counted]:
    """Count one bf16 step of this rank, of the shrunk H/14; every rank of the process group calls it.

    It is `orchestrator.engine.step.deepspeed_config`'s setting but for the sizes and for `overlap_comm`, which is on as
    on a GPU. The first two steps, in which stage 3 learns the order of the weights, are not counted.
    """
    settings = orchestrator.engine.step.deepspeed_config

    def shrunk(*args: Any, **kwargs: Any) -> dict[str, Any]:
        config = settings(*args, **kwargs)
        sizes = {**DEFAULTS, "reduce_bucket_size": config["zero_optimization"]["reduce_bucket_size"]}
        shrunk_sizes = {name: size // SHRUNK for name, size in sizes.items()}
        return {**config, "zero_optimization": {**config["zero_optimization"], **shrunk_sizes, "overlap_comm": True}}

    orchestrator.engine.step.deepspeed_config = shrunk
    try:
        config = model.vit_config("H/14", **SIZES, **PIXELS)
        engine, parameters = small_engine(config, stage, micro_batch=1, local_batch=micro_batches)
        batch = synthetic(config, micro_batches, torch.device("cpu"))
        for _ in range(2):
            engine.train_step(*batch, None, lr=OPTIMIZER.lr)
        recorder = _Recorder()
        engine.phases = recorder  # type: ignore[assignment]  # asked for `time` alone in a step
        with recorder:
            engine.train_step(*batch, None, lr=OPTIMIZER.lr)
    finally:
        orchestrator.engine.step.deepspeed_config = settings
    return summed(recorder.seen, parameters)


def summed(seen: Sequence[tuple[Kind, str, int]], parameters: int) -> list[Counted]:
    """(kind, phase, bytes) of every call, by kind and phase, in the order of their first."""
    found = []
    for group in dict.fromkeys((kind, phase) for kind, phase, _ in seen):
        sizes = [size for kind, phase, size in seen if (kind, phase) == group]
        found.append(Counted(*group, sum(sizes) / parameters, len(sizes)))
    return found


def small_engine(config: model.ViTConfig, stage: int, *, micro_batch: int, local_batch: int) -> tuple[Engine, int]:
    """The engine of this rank on a CPU in bf16, as a run has it, and the number of parameters."""
    torch.manual_seed(0)
    vit = model.VisionTransformer(config)
    parameters = sum(p.numel() for p in vit.parameters())
    classes = config.num_classes
    engine = Engine(
        vit,
        lambda logits, labels, weights: sigmoid_cross_entropy(logits, dense_targets(labels, weights, classes)),
        model.decay_mask(vit),
        optimizer=OPTIMIZER,
        parallel=Parallel(zero_stage=stage, precision="bf16"),
        micro_batch=micro_batch,
        local_batch=local_batch,
        device=torch.device("cpu"),
    )
    return engine, parameters
