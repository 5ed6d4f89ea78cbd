"""Measures the training step against other libraries' Vision Transformers and against bare matrix products."""

import argparse
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NoReturn

import torch

from benchmarks.step.child import ChildFailed, Waiting, ask
from benchmarks.step.report import GB, Measured, pairs, print_tables, report
from benchmarks.step.search import Remembered
from benchmarks.step.task import IMPLS, LOSSES, MATMUL, PEERS, Task
from model import vit_config
from orchestrator.engine.devices import device_name, without_bf16
from orchestrator.engine.memory.available import device_memory

EPILOG = """
A step is forward, backward, clipping to norm 1 and AdamW, on random uint8 images that are already on the device.
Contenders: `ours`, the engine of a run with one worker; `timm` and `transformers` in plain PyTorch, if installed; and
the bare products of a block's dense layers, which are the ceiling. All have the same precision (bf16: ours through
DeepSpeed, the others under torch.autocast), loss and memory. Each runs at the batch at which it is fastest.
Each contender runs in a fresh process. In the first round it runs alone. In the next rounds, if the memory suffices,
ours and a peer run side by side and take turns of one window, so that a machine whose speed drifts slows both down.

The last line is JSON. Of a row:
  images_per_s   median of all timed windows of all rounds; _min and _max are the slowest and the fastest window
  batch          images per step; `tried` has the fastest window of each batch that was tried
  mfu            images/s times 6 FLOPs per multiply-accumulate of the forward pass, over the datasheet's peak in bf16;
                 null if no peak is known. Recomputation and the optimizer do not count as work of the model
  mfu_measured   the same over the rate of the bare matrix products of the same run
  hfu            as mfu, with the FLOPs that the hardware does: with what checkpointing recomputes, without what ours
                 omits in its last block; hfu_measured: over the rate of the matrix products
  peak_gb        10^9 bytes: on a GPU those of tensors, on a CPU those of the whole process
  breakdown      shares of one profiled step by kind of work; idle: share without work for the GPU; top: the longest
                 kernels
  too_large      true if the smallest batch does not fit into the memory
  error          why the contender failed; details: the end of its output
`matmul` has the products of each model and precision; `matmul_tflops` is the best of them. `ratios` has the rate of
ours over that of the best peer, by model, precision and compilation: the median of the turns, or of the first round if
there were no turns. The best peer is the one with the smallest ratio.

The exit code is 1 if a contender failed. After an interrupt (Ctrl-C, SIGTERM), the results so far are reported.

  python -m benchmarks.step --models B/16 --precisions bf16 float32 --compiled both
  python -m benchmarks.step --models H/14 --impls ours timm --compiled yes --checkpointing none selective full
"""

MODELS = {"cuda": ("B/16", "L/16", "H/14"), "cpu": ("B/16", "L/16")}
LADDERS: dict[str, dict[str, tuple[int, ...]]] = {
    "cuda": {"B": (128, 256, 512), "L": (64, 128, 256), "H": (64, 128)},
    "cpu": {"B": (4, 8, 16), "L": (2, 4, 8), "H": (1, 2, 4)},
}
"""Batches to try, by the model's letter: from about full use of the arithmetic units to hardly any further gain."""
MEMORY_SHARE = {"cuda": 0.9, "cpu": 0.6}  # of the device's memory, for a contender
ZERO_STAGE = {"bf16": 1, "float32": 0}
"""ZeRO stage of ours, by precision; one process has nothing to shard. bf16: stage 1 accumulates gradients in float32,
as runs do. float32: stage 0 updates the weights in place and avoids the copy to a flat partition and back."""
TINY = {"depth": 2, "width": 64, "mlp_dim": 256, "heads": 2, "num_classes": 10}


class Interrupted(Exception):
    """SIGTERM."""


def tasks(options: argparse.Namespace, impls: Sequence[str]) -> tuple[list[Task], list[Task]]:
    """The tasks of the matrix products, and those of the contenders."""
    products, contenders = [], []
    for name, precision in itertools.product(options.models, options.precisions):
        letter = vit_config(name).name.removeprefix("ViT-")[0]
        base = Task(
            model=name,
            impl=MATMUL,
            compiled=False,
            precision=precision,
            checkpointing="none",
            zero_stage=ZERO_STAGE[precision] if options.zero_stage is None else options.zero_stage,
            loss=options.loss,
            batches=tuple(options.batches or ((2, 4) if options.quick else LADDERS[options.device].get(letter, (8,)))),
            device=options.device,
            threads=options.threads,
            memory=int(options.memory_gb * GB),
            warm_up=3 if options.device == "cuda" else 2,
            windows=2 if options.quick else 5 if options.device == "cuda" else 3,
            seconds=options.seconds,
            profile=False,
            sizes={**TINY, "image_size": 4 * vit_config(name).patch_size} if options.quick else {},
        )
        products.append(base)
        for compiled, impl, checkpointing in itertools.product(options.compiled, impls, options.checkpointing):
            if impl not in PEERS or checkpointing != "selective":  # the peers do not have that mode
                task = replace(base, impl=impl, compiled=compiled, checkpointing=checkpointing, profile=True)
                # With tiny models, most of the time is compilation.
                contenders.append(replace(task, batches=task.batches[:1]) if options.quick and compiled else task)
    return products, contenders


def measure(measured: Sequence[Measured], rounds: int, remembered: Remembered) -> None:
    """Fills in the results: each contender alone, with its search; then `rounds` - 1 turns of ours and each peer."""
    begun, total = time.monotonic(), len(measured)
    for done, found in enumerate(measured):
        left = (time.monotonic() - begun) / done * (total - done) if done else None
        task, search = found.task, search_name(found.task)
        if len(task.batches) > 1 and (known := remembered.get(search)):
            task = replace(task, batches=(known,))
        say(
            f"{done + 1} of {total}: {task.name}, batch {' '.join(map(str, task.batches))}"
            + (f", about {max(1, round(left / 60))} min left" if left else "")
        )
        measure_alone(found, task)
        if found.best:
            remembered.put(search, found.best.batch)
    if rounds > 1:
        couples = list(pairs(measured))
        for done, (ours, peer) in enumerate(couples):
            say(f"turns, {done + 1} of {len(couples)}: {ours.task.name} and {peer.task.name}")
            take_turns(ours, peer, range(1 + done * (rounds - 1), 1 + (done + 1) * (rounds - 1)))


def take_turns(ours: Measured, peer: Measured, numbers: range) -> None:
    """Measures the rounds `numbers` of two processes that exist side by side, so that both see the same drift."""
    tasks = [replace(one.task, batches=(one.best.batch,), profile=False) for one in (ours, peer) if one.best]
    if sum((one.best and one.best.peak) or 0 for one in (ours, peer)) > ours.task.memory:
        say("    both together do not fit into the memory: no turns")
        return
    both, at, waiting = (ours, peer), ours, []
    try:
        with ExitStack() as stack:
            for one, task in zip(both, tasks, strict=True):
                at = one
                waiting.append(stack.enter_context(Waiting(task)))
            for number in numbers:
                rates = [0.0, 0.0]
                for which in (0, 1) if number % 2 else (1, 0):
                    at = both[which]
                    rates[which] = waiting[which].window()
                ours.rounds[number], peer.rounds[number] = [rates[0]], [rates[1]]
                say(f"    {rates[0]:.4g} and {rates[1]:.4g} images/s: {rates[0] / rates[1]:.3f}")
    except ChildFailed as failure:
        at.error, at.details = str(failure), failure.details
        say(f"{at.task.name} failed: {failure}")


def measure_alone(found: Measured, task: Task) -> None:
    """Measures in a child process. If the smallest batch is too large, it is halved in new processes until one fits."""
    try:
        trials, searching = ask(task), len(task.batches) > 1
        while searching and not trials and task.batches[0] > 1:
            task = replace(task, batches=(task.batches[0] // 2,))
            say(f"    too large; batch {task.batches[0]}")
            trials = ask(task)
    except ChildFailed as failure:
        found.error, found.details = str(failure), failure.details
        say(f"{task.name} failed: {found.error}")
        return
    if not trials:
        say("    too large")
        return
    found.climbed = trials
    best = max(trials, key=lambda trial: trial.best_rate)
    found.rounds[0] = best.rates
    say(f"    {found.rate:.4g} images/s at batch {best.batch}")


def search_name(task: Task) -> str:
    """A name with everything that the best batch depends on."""
    size = " tiny" if task.sizes else ""
    return f"{task.name}{size} on {task.device}, {task.memory} bytes, ZeRO {task.zero_stage}, {task.threads} threads"


def run(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The fields of the JSON line, and whether all contenders succeeded."""
    impls = [impl for impl in options.impls if impl not in PEERS or importlib.util.find_spec(impl)]
    for impl in options.impls:
        if impl not in impls:
            say(f"{impl} is skipped: it is not installed")
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)  # part of a CPU's name
    if "bf16" in options.precisions and without_bf16(device, torch.bfloat16):
        say("this CPU lacks bf16 instructions: ours computes in float32; the peers may be a hundred times slower")

    products, contenders = ([Measured(task) for task in group] for group in tasks(options, impls))
    try:
        measure([*products, *contenders], options.rounds, Remembered(options.remember))
    except (KeyboardInterrupt, Interrupted):
        say("interrupted")
        for found in (*products, *contenders):
            if not found.rounds and not found.error:
                found.error = "not measured: interrupted"
    return {
        **report(products, contenders, device, device_name(device)),
        "memory_gb": options.memory_gb,
        "threads": options.threads,
        "loss": options.loss,
        "rounds": options.rounds,
        "quick": options.quick,
        "torch": torch.__version__,
    }, not any(found.error for found in (*products, *contenders))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="such as B/16 (GPU: B/16 L/16 H/14; CPU: B/16 L/16)")
    add("--impls", nargs="+", choices=IMPLS, default=list(IMPLS), help="(all)")
    add("--precisions", nargs="+", choices=("bf16", "float32"), help="(GPU: bf16; CPU: float32)")
    add("--compiled", choices=("no", "yes", "both"), default="both", help="with torch.compile (%(default)s)")
    modes = ("none", "selective", "full")
    add(
        "--checkpointing",
        nargs="+",
        choices=modes,
        default=["none"],
        help="of activations; peers have none and full (none)",
    )
    batches = parser.add_mutually_exclusive_group()
    batches.add_argument("--batch", type=int, metavar="N", help="the same batch for all, without a search")
    batches.add_argument("--batches", nargs="+", type=int, metavar="N", help="to try, rising (by model and device)")
    add("--remember", metavar="FILE", help="file of best batches: read at the start, written during the run")
    add("--memory-gb", type=float, help="memory of a contender (90%% of the GPU's; 60%% of the machine's)")
    add("--rounds", type=int, help="one alone, the others in turns (GPU: 1; CPU: 10)")
    add("--seconds", type=float, help="of a timed window, at least one step (GPU: 1; CPU: 4)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--threads", type=int, default=cores, help="of a CPU (%(default)s)")
    add("--device", choices=("cuda", "cpu"), help="(cuda if there is one)")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), help="of ours (bf16: 1; float32: 0)")
    add("--loss", choices=tuple(LOSSES), default="sigmoid", help="(%(default)s)")
    add("--quick", action="store_true", help="tiny sizes: checks that it works; the rates mean nothing")
    add("--child", metavar="TASK", help=argparse.SUPPRESS)
    add("--turns", metavar="TASK", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child or options.turns:
        return options

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has none")
    on_gpu = options.device == "cuda"
    options.models = options.models or (["B/16"] if options.quick else MODELS[options.device])
    for name in options.models:
        try:
            vit_config(name)
        except ValueError as error:
            parser.error(f"--models: {error}")
    options.precisions = options.precisions or (["bf16"] if on_gpu else ["float32"])
    options.compiled = {"no": (False,), "yes": (True,), "both": (False, True)}[options.compiled]
    options.batches = [options.batch] if options.batch else options.batches
    if options.batches and (min(options.batches) < 1 or sorted(set(options.batches)) != options.batches):
        parser.error("--batches: must be positive and rising")
    options.rounds = options.rounds or (1 if on_gpu else 2 if options.quick else 10)
    options.seconds = options.seconds or (0.05 if options.quick else 1.0 if on_gpu else 4.0)
    options.memory_gb = options.memory_gb or round(
        MEMORY_SHARE[options.device] * device_memory(torch.device(options.device), 1) / GB, 1
    )
    return options


def interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        from benchmarks.step.worker import answer

        print(json.dumps(answer(Task.from_json(options.child))))
        return 0
    if options.turns:
        from benchmarks.step.worker import serve

        serve(Task.from_json(options.turns), sys.stdin)
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    found, well = run(options)
    print_tables(found)
    print(json.dumps(found))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
