"""The data that ranks exchange in a step: a table, and the count of a real step from which it was taken.

DeepSpeed's stages do not send what the ZeRO paper describes (Rajbhandari et al. 2020, section 7). In the paper, stages
1 and 2 reduce-scatter gradients. DeepSpeed's stages all-reduce them, and every rank discards the parts of the others.
`tally` runs the real `orchestrator.engine.step.Engine` and records every collective below torch.distributed, with its
bytes and the phase of the step. `scaling/model.py` uses `TRAFFIC`, which a test compares with a fresh count.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import model
import orchestrator.engine.step
from benchmarks.step.task import OPTIMIZER, synthetic
from model.objectives import dense_targets, sigmoid_cross_entropy
from orchestrator.engine.settings import deepspeed_config
from orchestrator.engine.step import Engine
from orchestrator.job.sections import Parallel

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
KINDS: dict[str, Kind] = {
    "c10d::allreduce_": "all_reduce",
    "c10d::_allgather_base_": "all_gather",
    "c10d::_reduce_scatter_base_": "reduce_scatter",
}
BEFORE = "before"  # phase before the forward pass: the sum of valid samples


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one phase of a step.

    Attributes:
        size: bytes per parameter of the model, of all calls together. They are the bytes of the whole tensor that is
            reduced, gathered, or reduced and scattered, not of one rank's share.
        calls: number of calls with H/14 and the engine's bucket sizes.
        every: whether they occur in each micro-batch or once per step.
        hides: the computation that they overlap on a GPU, where `overlap_comm` is on; "nothing": computation waits.
    """

    kind: Kind
    phase: str
    size: float
    calls: int
    every: Literal["micro_batch", "step"]
    hides: Literal["forward", "backward", "nothing"]


# `hides` is from DeepSpeed 0.19.8's code; everything else is what `tally` counts in bf16.
TRAFFIC: Mapping[int, tuple[Traffic, ...]] = {
    1: (
        # BF16_Optimizer: the engine's `allreduce_gradients` begins after the last backward pass. Its bucket is a
        # constant of 5e8 gradients, which the count cannot shrink. H/14 makes two calls, that is, one more latency.
        Traffic("all_reduce", "backward", 2.0, 1, "step", "nothing"),
        # The new weights after the update: one call for each parameter group, with and without weight decay.
        Traffic("all_gather", "optimizer", 2.0, 2, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
    ),
    2: (
        # `average_tensor` sends a bucket when it is full, on a stream of its own. At the end of every backward pass,
        # `independent_gradient_partition_epilogue` waits for it.
        Traffic("all_reduce", "backward", 2.0, 15, "micro_batch", "backward"),
        Traffic("all_gather", "optimizer", 2.0, 2, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
        Traffic("all_reduce", "optimizer", 0.0, 3, "step", "nothing"),  # whether gradients are finite, and the norm
    ),
    3: (
        # `fetch_sub_module` gathers a bucket of 5e7 weights ahead. They are kept for the backward pass, because H/14
        # has fewer weights than `stage3_max_live_parameters` and `stage3_max_reuse_distance`.
        Traffic("all_gather", "forward", 2.0, 13, "micro_batch", "forward"),
        # `__reduce_and_partition_ipg_grads` sends a bucket when it is full, on a stream of its own.
        Traffic("reduce_scatter", "backward", 2.0, 15, "micro_batch", "backward"),
        # Norms and biases are below `stage3_param_persistence_threshold` and kept on all ranks: one call each.
        Traffic("all_gather", "optimizer", 0.0, 261, "step", "nothing"),
        Traffic("all_reduce", BEFORE, 0.0, 1, "step", "nothing"),
        Traffic("all_reduce", "optimizer", 0.0, 2, "step", "nothing"),
    ),
}


@dataclass(frozen=True)
class Counted:
    """Collectives of one kind in one phase, counted in a step: bytes per parameter, and the number of calls."""

    kind: Kind
    phase: str
    size: float
    calls: int


def expected(stage: int, micro_batches: int) -> list[Counted]:
    """The entries of `TRAFFIC` for a step of H/14."""
    times = {"step": 1, "micro_batch": micro_batches}
    return [Counted(t.kind, t.phase, times[t.every] * t.size, times[t.every] * t.calls) for t in TRAFFIC[stage]]


# The counted network has H/14's depth and shape, a tenth of its width, and so a hundredth of its parameters. All sizes
# that DeepSpeed compares with numbers of parameters are divided by a hundred as well, so the number of collectives is
# the same.
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
    """Records the collectives in torch's dispatcher. It replaces the engine's `Phases`, so it knows the phase."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Kind, str, int]] = []
        self._phase = BEFORE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            whole = max(_tensors(args), key=lambda tensor: tensor.numel())  # the whole tensor, not a rank's share
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
    """Counts one bf16 step of this rank, with the shrunk H/14. Every rank of the process group must call it.

    The settings are the engine's own, except for the sizes, and for `overlap_comm`, which is on as on a GPU. The first
    two steps, in which stage 3 learns the order of the weights, are not counted.
    """
    config = model.vit_config("H/14", **SIZES, **PIXELS)
    with _shrunk_settings():
        engine, parameters = small_engine(config, stage, micro_batch=1, local_batch=micro_batches)
    batch = synthetic(config, micro_batches, torch.device("cpu"))
    for _ in range(2):
        engine.train_step(*batch, None, lr=OPTIMIZER.lr)
    recorder = _Recorder()
    engine.phases = recorder  # type: ignore[assignment]  # a step uses only `time`
    with recorder:
        engine.train_step(*batch, None, lr=OPTIMIZER.lr)
    return summed(recorder.seen, parameters)


@contextmanager
def _shrunk_settings() -> Iterator[None]:
    """Inside the block, an engine is created with shrunk sizes.

    Raises:
        RuntimeError: no engine has read the shrunk sizes.
    """

    def shrunk(*args: Any, **kwargs: Any) -> dict[str, Any]:
        config = deepspeed_config(*args, **kwargs)
        sizes = {**DEFAULTS, "reduce_bucket_size": config["zero_optimization"]["reduce_bucket_size"]}
        shrunk_sizes = {name: size // SHRUNK for name, size in sizes.items()}
        return {**config, "zero_optimization": {**config["zero_optimization"], **shrunk_sizes, "overlap_comm": True}}

    # engine.step imports the function by name, so it is replaced there and not in engine.settings.
    with mock.patch.object(orchestrator.engine.step, "deepspeed_config", side_effect=shrunk) as replacement:
        yield
    if not replacement.called:
        raise RuntimeError("the engine did not read the shrunk settings")


def summed(seen: Sequence[tuple[Kind, str, int]], parameters: int) -> list[Counted]:
    """Sums calls (kind, phase, bytes) by kind and phase, in the order of the first call of each."""
    found = []
    for group in dict.fromkeys((kind, phase) for kind, phase, _ in seen):
        sizes = [size for kind, phase, size in seen if (kind, phase) == group]
        found.append(Counted(*group, sum(sizes) / parameters, len(sizes)))
    return found


def small_engine(config: model.ViTConfig, stage: int, *, micro_batch: int, local_batch: int) -> tuple[Engine, int]:
    """The engine of this rank on a CPU in bf16, as in a run, and the number of parameters."""
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
