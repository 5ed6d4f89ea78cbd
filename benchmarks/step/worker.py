"""The work of a child process: builds one contender, and measures its batches or a window on request."""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.matmul import Products
from benchmarks.step.phases import profile_step
from benchmarks.step.search import Trial, climb
from benchmarks.step.task import MATMUL, PEERS, Contender, Task, synthetic
from orchestrator.engine.memory.available import device_memory

WINDOWS_SECONDS = 60.0  # limit for all windows of a batch; the first one may take longer
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def answer(task: Task) -> dict[str, Any]:
    """Measures the task's batches.

    Returns:
        `trials`: the fields of every `search.Trial` by rising batch, empty if the first batch does not fit;
        `parameters`: number of weights.

    Raises:
        RuntimeError: the contender's network is not the same as ours, or its loss is not finite.
    """
    device, contender = prepare(task)
    trials = climb(
        task.batches, lambda batch: attempt(task, contender, batch), limit=task.memory, at_rest=in_use(device)
    )
    return {"trials": [vars(trial) for trial in trials], "parameters": contender.parameters}


def serve(task: Task, asked: Iterable[str]) -> None:
    """Warms up at the first batch, then measures a window for every line of `asked`. Prints `rate IMAGES_PER_SECOND`.

    Raises:
        RuntimeError: the contender's network is not the same as ours.
    """
    device, contender = prepare(task)
    batch = task.batches[0]
    data = synthetic(task.config, batch, device)

    def step() -> object:
        return contender.step(data)

    for _ in range(task.warm_up - 1):
        step()
    seconds = window(step, 1, device)
    steps = max(1, round(task.seconds / seconds))
    print(f"rate {batch / seconds}", flush=True)
    for _ in asked:
        step()  # not timed: the caches hold the other process's data
        print(f"rate {batch * steps / window(step, steps, device)}", flush=True)


def prepare(task: Task) -> tuple[torch.device, Contender]:
    """The contender, with the threads and the memory of the task."""
    device = torch.device(task.device)
    if task.device == "cpu":
        torch.set_num_threads(task.threads)
    else:
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.memory / device_memory(device, 1)))
    contender = build(task, device)
    if task.impl != MATMUL and contender.parameters != (expected := count_parameters(task)):
        raise RuntimeError(f"{task.impl} has {contender.parameters:,} parameters instead of {expected:,}")
    return device, contender


def build(task: Task, device: torch.device) -> Contender:
    """Creates the contender. Imports only its own libraries, so that no other one's take memory."""
    torch.manual_seed(0)
    if task.impl == MATMUL:
        return Products(task, device)
    if task.impl in PEERS:
        from benchmarks.step.peers import Peer

        return Peer(task, device)
    os.environ.setdefault("DS_ACCELERATOR", task.device)  # before DeepSpeed is imported
    from benchmarks.step.ours import Ours

    return Ours(task, device)


def count_parameters(task: Task) -> int:
    """Number of weights of this project's model."""
    from model import VisionTransformer

    with torch.device("meta"):
        return sum(p.numel() for p in VisionTransformer(task.config).parameters())


def attempt(task: Task, contender: Contender, batch: int) -> Trial | None:
    """Measures one batch size; None if it does not fit into the memory."""
    try:
        return measure(task, contender, batch)
    except (RuntimeError, MemoryError) as error:  # errors of CUDA, its libraries, and the CPU allocator
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            print(f"{task.name}, batch {batch}: {str(error).splitlines()[0]}", file=sys.stderr)
            return None
        raise


def measure(task: Task, contender: Contender, batch: int) -> Trial:
    device = torch.device(task.device)
    if task.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if task.compiled:  # compile for each batch size separately, as a run has only one
        torch.compiler.reset()
    data = synthetic(task.config, batch, device)

    losses: list[torch.Tensor] = []

    def step() -> None:
        losses[:] = [contender.step(data)]

    for _ in range(task.warm_up - 1):
        step()
    seconds = window(step, 1, device)  # the last step of the warm-up
    steps = max(1, round(task.seconds / seconds))
    deadline = time.perf_counter() + WINDOWS_SECONDS
    rates: list[float] = []
    while not rates or (len(rates) < task.windows and time.perf_counter() < deadline):
        rates.append(batch * steps / window(step, steps, device))
    peak = peak_bytes(device)
    profiled = profile_step(step, device, batch / max(rates)) if task.profile else {}
    loss = float(losses[0])
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss} at batch {batch}")
    return Trial(batch, rates, peak, loss, profiled)


def window(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds of `steps` steps. A GPU is timed by its own clock, and waited for only at the end."""
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - begun
    torch.cuda.synchronize(device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000.0


def in_use(device: torch.device) -> int | None:
    """Bytes that this process uses now: tensors on a GPU, resident memory on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident("VmRSS")


def peak_bytes(device: torch.device) -> int | None:
    """The largest number of bytes used so far, which is that of the last batch, because batches rise."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int | None:
    """A field of Linux's process status, in bytes; None on another system."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found.group(1)) * 1024 if found else None
