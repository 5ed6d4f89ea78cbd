"""The page that sums up a trace: where a step's time goes, the largest kernels, gaps, communication, what to do."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.engine.phases import BACKWARD, CHECKPOINT_STALL, DATA_WAIT, FORWARD, OPTIMIZER, OTHER, STEP
from orchestrator.history.profile.trace import Findings, Window, examine
from orchestrator.wording import count

OPERATIONS_SHOWN = 15  # kernels or operations on the page
LONGEST_NAME = 90  # characters; a kernel's template may have hundreds

# Shares of a step, or of the profiled time, above which the page gives advice.
MUCH_DATA_WAIT = 0.05
MUCH_STALL = 0.05
MUCH_IDLE = 0.1
MUCH_EXPOSED = 0.1
MUCH_OPTIMIZER = 0.15
MUCH_OTHER = 0.1


def summarise(trace_events: Iterable[Mapping[str, Any]], window: Window) -> str:
    """The page, in Markdown, of the `traceEvents` of a trace.

    Raises:
        ValueError: the trace holds no step.
    """
    found = examine(trace_events, window)
    parts = [_head(found, window), _split(found), _operations(found, window.steps), _gaps(found), _communication(found)]
    advice = "## What to look at next\n\n" + "".join(f"- {line}\n" for line in advise(found))
    return "\n".join([*parts, advice])


def advise(found: Findings) -> list[str]:
    """A line of advice for each number that stands out."""
    share = {phase: seconds / found.split[STEP] for phase, seconds in found.split.items()}
    kind = "operation" if found.idle is None else "kernel"
    lines = []
    if share[DATA_WAIT] > MUCH_DATA_WAIT:
        lines.append(
            f"Data wait is {share[DATA_WAIT]:.1%} of a step: images come too slowly. More CPUs a worker and "
            "`data.workers`, a `data.cache_dir`, or a faster store; `data/retries` shows a bad one."
        )
    if share[CHECKPOINT_STALL] > MUCH_STALL:
        lines.append(
            f"Checkpoints stop training for {share[CHECKPOINT_STALL]:.1%} of these steps: a longer `checkpoint.every`."
        )
    if found.idle is not None and found.idle > MUCH_IDLE:
        lines.append(
            f"The device was idle for {found.idle:.1%} of the time. If the gaps are many and short, the host "
            "cannot launch kernels fast enough: a larger `parallel.micro_batch`, or `parallel.compile: true`."
        )
    if found.exposed > MUCH_EXPOSED:
        lines.append(
            f"Exposed communication is {found.exposed:.1%} of the time: more images a worker and step, a "
            "lower `parallel.zero_stage`, or faster links. It includes waiting for slower workers."
        )
    if share[OPTIMIZER] > MUCH_OPTIMIZER:
        lines.append(
            f"The optimizer is {share[OPTIMIZER]:.1%} of a step. Its work depends on the parameters alone: more images "
            "a worker and step, or more workers with `parallel.zero_stage` 1 or higher, which share it."
        )
    if share[OTHER] > MUCH_OTHER:
        lines.append(
            f"{share[OTHER]:.1%} of a step is outside of all phases: sums over workers, which include waiting for "
            "slower ones, and the host's own work between two steps, such as points of the curves."
        )
    if not lines:
        lines.append(f"Nothing stands out: {share[FORWARD] + share[BACKWARD]:.1%} of a step is forward and backward.")
    if found.operations:
        largest = found.operations[0]
        lines.append(f"The largest {kind} is `{_short(largest.name)}` with {largest.share:.1%} of all {kind}s' time.")
    return lines


def _head(found: Findings, window: Window) -> str:
    facts = {
        "device": window.device,
        "steps": f"{window.steps}, from {window.first} to {window.last} steps done",
        "worker": f"rank 0 of {count(window.workers, 'worker')}",
        "mean time a step": f"{_ms(found.split[STEP])} ms, with the profiler's own cost; evaluations are left out",
    }
    rows = "".join(f"| {name} | {fact} |\n" for name, fact in facts.items())
    return f"# Profile of steps {window.first} to {window.last}\n\n| | |\n|---|---|\n{rows}"


def _split(found: Findings) -> str:
    rows = "".join(
        f"| {phase.replace('_', ' ')} | {_ms(seconds)} | {seconds / found.split[STEP]:.1%} |\n"
        for phase, seconds in found.split.items()
        if phase != STEP
    )
    return f"## A step\n\n| phase | ms a step | share |\n|---|---:|---:|\n{rows}"


def _operations(found: Findings, steps: int) -> str:
    rows = "".join(
        f"| {_ms(each.seconds / steps)} | {each.share:.1%} | {each.calls / steps:.4g} | `{_short(each.name)}` |\n"
        for each in found.operations[:OPERATIONS_SHOWN]
    )
    if rest := found.operations[OPERATIONS_SHOWN:]:
        seconds, share = sum(each.seconds for each in rest), sum(each.share for each in rest)
        rows += f"| {_ms(seconds / steps)} | {share:.1%} | {sum(each.calls for each in rest) / steps:.4g} | others |\n"
    what = "Operations by the host's own time in them" if found.idle is None else "Kernels and copies"
    return f"## {what}\n\n| ms a step | share | calls a step | |\n|---:|---:|---:|---|\n{rows}"


def _gaps(found: Findings) -> str:
    if found.idle is None:
        return "## Gaps\n\nNot defined on a CPU: it computes with the thread that would have to wait.\n"
    text = f"## Gaps\n\nThe device was idle for {found.idle:.1%} of the time.\n"
    if not found.gaps:
        return text
    rows = "".join(
        f"| {_ms(gap.seconds)} | {_ms(gap.begin)} | {gap.phase.replace('_', ' ') or 'between phases'} | "
        f"{f'`{_short(gap.doing)}`' if gap.doing else 'no operation: Python, or waiting'} |\n"
        for gap in found.gaps
    )
    return f"{text}\n| longest, ms | at ms | host's phase | host was in |\n|---:|---:|---|---|\n{rows}"


def _communication(found: Findings) -> str:
    what = "Collectives of gloo" if found.idle is None else "Kernels of NCCL"
    return (
        f"## Communication\n\n{what} ran for {found.communication:.1%} of the time, including "
        f"{found.exposed:.1%} in which nothing else was computed. Waiting for other workers is part of both.\n"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"


def _short(name: str) -> str:
    """A name that fits a row of a Markdown table."""
    name = name.replace("|", "/").replace("`", "'")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
