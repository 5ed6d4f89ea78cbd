"""Numbers from the trace of a few steps: pure functions over the events of a Chrome trace of torch.profiler.

Times in a trace are microseconds, and time is handled as sorted intervals that do not overlap:

    profiled = from the first step's begin to the last one's end - evaluations
    busy     = union of all kernels and copies of the device
    idle     = profiled - busy, whose intervals are the gaps

A GPU's work is its kernels and copies, one after the other in each queue. A CPU's work is the host's operations; they
are nested, and each moment of a thread counts for the innermost one.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.engine.phases import EVALUATION, PHASES, per_step

STEP_LABEL = "ProfilerStep#"  # and the number of steps done with it; trace viewers know the name
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of events
HOST_WORK = ("cpu_op", "cuda_runtime", "cuda_driver")
LONGEST_GAPS = 5
SECOND = 1e6  # in a trace's unit

Interval = tuple[float, float]


class Event(NamedTuple):
    """A span of time on one thread, or in one queue of a device."""

    name: str
    category: str
    thread: tuple[Any, Any]
    begin: float
    end: float


_NEVER = Event("", "", (None, None), math.inf, math.inf)  # begins after all others


@dataclass(frozen=True)
class Window:
    """What was traced.

    Attributes:
        first, last: steps of the run that were done at the beginning and at the end.
        device: its name.
        workers: training processes; the trace is rank 0's.
        spent: seconds of these steps by phase.
    """

    first: int
    last: int
    device: str
    workers: int
    spent: Mapping[str, float]

    @property
    def steps(self) -> int:
        """How many steps were traced."""
        return self.last - self.first


@dataclass(frozen=True)
class Operation:
    """A kernel or an operation: seconds and calls of all steps, and its share of the time of all of its kind."""

    name: str
    seconds: float
    calls: int
    share: float


@dataclass(frozen=True)
class Gap:
    """A time in which the device was idle.

    Attributes:
        begin: seconds since the first step began.
        seconds: length.
        phase: the phase that took most of the gap on the host; empty if none did.
        doing: the operation or driver call that took most of the gap on the host; empty if none did.
    """

    begin: float
    seconds: float
    phase: str
    doing: str


@dataclass(frozen=True)
class Findings:
    """The numbers of a trace.

    Attributes:
        split: seconds a step: `step`, each phase, `other`.
        operations: by falling time; kernels and copies of a GPU, operations of a CPU.
        idle: share of the profiled time in which a GPU was idle; None on a CPU, whose work has no gaps.
        gaps: the longest of these times, by falling length.
        communication: share of the profiled time in which a collective was under way.
        exposed: share of the profiled time in which a collective, and nothing else, was under way.
    """

    split: dict[str, float]
    operations: list[Operation]
    idle: float | None
    gaps: list[Gap]
    communication: float
    exposed: float


def examine(trace_events: Iterable[Mapping[str, Any]], window: Window) -> Findings:
    """Read the `traceEvents` of a trace of `window`.

    Raises:
        ValueError: there is no step among them.
    """
    events = [
        Event(e["name"], e.get("cat", ""), (e["pid"], e["tid"]), e["ts"], e["ts"] + e["dur"])
        for e in trace_events
        if e["ph"] == "X"
    ]
    labels = [event for event in events if event.category == "user_annotation"]
    steps = [event for event in labels if event.name.startswith(STEP_LABEL)]
    if not steps:
        raise ValueError("the trace holds no step")
    begin, end = min(step.begin for step in steps), max(step.end for step in steps)
    profiled = subtract([(begin, end)], unite(event for event in labels if event.name == EVALUATION))
    total = length(profiled)

    inside = [event for event in events if _holds(profiled, event.begin)]
    device = [event for event in inside if event.category in DEVICE_WORK]
    host = [event for event in inside if event.category in HOST_WORK]
    pieces = innermost(host)
    if device:
        collectives = [event for event in device if "nccl" in event.name.lower()]
        computing = [event for event in device if "nccl" not in event.name.lower()]
        gaps = subtract(profiled, unite(device))
    else:
        collectives = [event for event in labels if event.name.startswith("gloo:")]
        computing = [piece for piece in pieces if not piece.name.startswith("c10d::")]
        gaps = []
    communicating = intersect(profiled, unite(collectives))
    phases = [event for event in labels if event.name in PHASES and event.thread == steps[0].thread]
    longest = sorted(gaps, key=lambda gap: gap[0] - gap[1])[:LONGEST_GAPS]
    return Findings(
        split=per_step(window.spent, seconds=total / SECOND, steps=window.steps),
        operations=_operations(device, device) if device else _operations(pieces, host),
        idle=length(gaps) / total if device else None,
        gaps=[_gap(gap, begin, phases, pieces) for gap in longest],
        communication=length(communicating) / total,
        exposed=length(subtract(communicating, unite(computing))) / total,
    )


def unite(spans: Iterable[Event | Interval]) -> list[Interval]:
    """The time that is in any of the spans."""
    united: list[Interval] = []
    for begin, end in sorted(span[-2:] for span in spans):
        if united and begin <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        elif begin < end:
            united.append((begin, end))
    return united


def subtract(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """The time in `intervals` that is in none of `holes`; both are sorted and do not overlap themselves."""
    left, first = [], 0
    for begin, end in intervals:
        while first < len(holes) and holes[first][1] <= begin:
            first += 1
        at = first
        while at < len(holes) and holes[at][0] < end:
            if begin < holes[at][0]:
                left.append((begin, holes[at][0]))
            begin = holes[at][1]
            at += 1
        if begin < end:
            left.append((begin, end))
    return left


def intersect(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The time in both."""
    return subtract(some, subtract(some, others))


def length(intervals: Iterable[Interval]) -> float:
    """The time in them."""
    return sum(end - begin for begin, end in intervals)


def innermost(events: Iterable[Event]) -> list[Event]:
    """The events cut into pieces that do not overlap: on each thread, each moment is the innermost event's."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        threads[event.thread].append(event)
    return [piece for thread in threads.values() for piece in _innermost_of_thread(thread)]


def _innermost_of_thread(events: list[Event]) -> list[Event]:
    pieces: list[Event] = []
    around: list[Event] = []  # the events around the moment `now`, outermost first
    now = 0.0
    for event in [*sorted(events, key=lambda event: (event.begin, -event.end)), _NEVER]:
        while around and around[-1].end <= event.begin:
            over = around.pop()
            if now < over.end:
                pieces.append(over._replace(begin=now))
                now = over.end
        if around and now < event.begin:
            pieces.append(around[-1]._replace(begin=now, end=event.begin))
        now = event.begin
        around.append(event)
    return pieces


def _operations(pieces: Iterable[Event], events: Iterable[Event]) -> list[Operation]:
    times: dict[str, float] = defaultdict(float)
    for piece in pieces:
        times[piece.name] += piece.end - piece.begin
    calls = Counter(event.name for event in events)
    total = sum(times.values())
    ranked = sorted(times.items(), key=lambda each: -each[1])
    return [Operation(name, time / SECOND, calls[name], time / total if total else 0.0) for name, time in ranked]


def _gap(gap: Interval, start: float, phases: Iterable[Event], pieces: Iterable[Event]) -> Gap:
    begin, end = gap
    return Gap((begin - start) / SECOND, (end - begin) / SECOND, _mostly(gap, phases), _mostly(gap, pieces))


def _mostly(gap: Interval, events: Iterable[Event]) -> str:
    """The name that takes more than half of the gap, or nothing."""
    times: dict[str, float] = defaultdict(float)
    for event in events:
        times[event.name] += max(0.0, min(gap[1], event.end) - max(gap[0], event.begin))
    name = max(times, key=lambda name: times[name], default="")
    return name if name and times[name] > length([gap]) / 2 else ""


def _holds(intervals: Sequence[Interval], moment: float) -> bool:
    at = bisect_right(intervals, moment, key=lambda interval: interval[0]) - 1
    return at >= 0 and moment < intervals[at][1]
