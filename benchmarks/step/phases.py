"""Where the time of one step goes, by kind of work.

On a GPU, the time is that of the kernels, which overlap if a step uses several streams. On a CPU, it is each
operation's own time on the thread that calls it. A compiled kernel counts as normalisation if it contains a norm,
otherwise as elementwise. On a CPU, a compiled region's own time, including its norms, counts as elementwise.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from orchestrator.engine.phases import OPTIMIZER

CATEGORIES = (
    "matmul",
    "attention",
    "normalisation",
    "elementwise",
    "optimizer",
    "copies_and_casts",
    "communication",
    "other",
)
TOP = 8  # names listed
WHOLE_STEP = "benchmark_step"  # label; its own time is that of Python between operations

# The first pattern found in a name decides. Names are those of operations ("aten::addmm"), of CUDA kernels
# ("nvjet_tst_128x256_64x4_2x1_v_bz_NNT"), of inductor's ("triton_poi_fused_addmm_gelu_3", which is only the GELU).
RULES = tuple(
    (category, re.compile(pattern, re.IGNORECASE))
    for category, pattern in (
        ("communication", r"nccl|gloo|c10d::|all_?reduce|all_?gather|reduce_?scatter"),
        ("normalisation", r"triton_(poi|red|per)_.*layer_norm"),
        ("elementwise", r"triton_(poi|red|per)_"),
        ("attention", r"scaled_dot_product|flash|fmha|sdpa|attention"),
        ("normalisation", r"layer_?norm|RowwiseMoments|GammaBeta"),
        ("matmul", r"gemm|nvjet|cutlass|cublas|xmma|matmul|linear|conv(?!ert)|wgrad|dgrad|triton_tem_|\b(add|b)?mm\b"),
        ("optimizer", r"adam|multi_tensor_apply"),
        ("copies_and_casts", r"memcpy|memset|copy|aten::(to|clone|contiguous|cat|fill_|zero_)$|CatArray|FillFunctor"),
        ("elementwise", r"^aten::|elementwise|reduce_kernel|softmax|scatter|CompiledF|Torch-Compiled"),
    )
)


class Piece(NamedTuple):
    """A kernel, or an operation without its inner operations."""

    name: str
    seconds: float
    optimizer: bool  # whether it is part of clipping or the optimizer step


def profile_step(step: Callable[[], object], device: torch.device, seconds: float) -> dict[str, Any]:
    """Runs `step` once under torch.profiler.

    Args:
        seconds: time of a step without the profiler.

    Returns:
        `breakdown`: category -> share of the time; the shares sum to 1. `top`: the TOP largest [name, share]. `idle`:
        the share of a step without work for the GPU; None for a CPU.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
        with record_function(WHOLE_STEP):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    events: Sequence[FunctionEvent] = trace.events() or ()
    pieces = kernels(events) if on_gpu else operations(events)
    idle = None
    if on_gpu:
        busy = covered((event.time_range.start, event.time_range.end) for event in events if is_kernel(event)) / 1e6
        idle = round(max(0.0, 1.0 - busy / seconds), 4)
    return {"breakdown": breakdown(pieces), "top": largest(pieces), "idle": idle}


def operations(events: Iterable[FunctionEvent]) -> list[Piece]:
    """All operations of a CPU, with their own time."""

    def inside_optimizer(event: FunctionEvent | None) -> bool:
        while event is not None and event.name != OPTIMIZER:
            event = event.cpu_parent
        return event is not None

    on_cpu = (event for event in events if event.device_type == DeviceType.CPU and not event.is_async)
    return [Piece(event.name, event.self_cpu_time_total / 1e6, inside_optimizer(event)) for event in on_cpu]


def kernels(events: Sequence[FunctionEvent]) -> list[Piece]:
    """All kernels, copies and fills of a GPU. The device's timeline also has the optimizer's label."""
    labels = [
        event.time_range
        for event in events
        if event.device_type == DeviceType.CUDA and event.is_user_annotation and event.name == OPTIMIZER
    ]

    def inside_optimizer(event: FunctionEvent) -> bool:
        return any(label.start <= event.time_range.start < label.end for label in labels)

    return [
        Piece(event.name, event.time_range.elapsed_us() / 1e6, inside_optimizer(event))
        for event in events
        if is_kernel(event)
    ]


def is_kernel(event: FunctionEvent) -> bool:
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def breakdown(pieces: Iterable[Piece]) -> dict[str, float]:
    """Share of the time by category."""
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    for piece in pieces:
        seconds[category(piece)] += piece.seconds
    total = sum(seconds.values())
    return {name: round(value / total, 4) for name, value in seconds.items()}


def largest(pieces: Iterable[Piece]) -> list[tuple[str, float]]:
    """The names with the longest time, and their shares."""
    seconds: Counter[str] = Counter()
    for piece in pieces:
        seconds[piece.name[:100]] += piece.seconds  # type: ignore[assignment]
    total = seconds.total()
    return [(name, round(value / total, 4)) for name, value in seconds.most_common(TOP)]


def category(piece: Piece) -> str:
    if piece.optimizer:
        return "optimizer"
    return next((name for name, pattern in RULES if pattern.search(piece.name)), "other")


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
