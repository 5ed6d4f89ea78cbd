"""What is read from a trace: arithmetic of intervals against a brute force, a made-up GPU, a real trace of the CPU."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from orchestrator.history.profile.page import advise, summarise
from orchestrator.history.profile.trace import (
    DEVICE_WORK,
    STEP_LABEL,
    Event,
    Window,
    examine,
    innermost,
    intersect,
    length,
    subtract,
    unite,
)

NOTHING = {"data_wait": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0, "checkpoint_stall": 0.0}
SIZE = 60  # of a made-up time, in whole units


def window(first: int = 10, last: int = 12, **spent: float) -> Window:
    return Window(first, last, "a device", 2, NOTHING | spent)


def moments(intervals: Iterable[tuple[float, float]]) -> set[int]:
    """The units of time that the intervals cover."""
    return {moment for begin, end in intervals for moment in range(int(begin), int(end))}


def some_intervals(dice: random.Random) -> list[tuple[float, float]]:
    begins = [dice.randrange(SIZE) for _ in range(dice.randrange(12))]
    return [(begin, begin + dice.randrange(9)) for begin in begins]


@pytest.mark.parametrize("seed", range(20))
def test_intervals_are_sets_of_moments(seed: int) -> None:
    dice = random.Random(seed)
    raw = some_intervals(dice), some_intervals(dice)
    a, b = map(unite, raw)
    assert moments(a) == moments(raw[0])
    for found, expected in (
        (subtract(a, b), moments(a) - moments(b)),
        (intersect(a, b), moments(a) & moments(b)),
    ):
        assert moments(found) == expected
        assert length(found) == len(expected), "they do not overlap"
        assert found == sorted(found)
        assert all(begin < end for begin, end in found)


def nested(dice: random.Random, thread: int, begin: int, end: int, depth: int) -> list[tuple[int, Event]]:
    """Random events with their depth, those inside others within their bounds and after them, as in a trace."""
    found = []
    while begin < end:
        begin += dice.randrange(4)
        stop = min(end, begin + dice.randrange(1, 12))
        if begin < stop:
            found.append((depth, Event(f"op{dice.randrange(5)}", "cpu_op", (0, thread), begin, stop)))
            if depth < 4:
                found += nested(dice, thread, begin, stop, depth + 1)
        begin = stop
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_moment_is_the_innermost_events(seed: int) -> None:
    dice = random.Random(seed)
    events = [each for thread in (1, 2) for each in nested(dice, thread, 0, SIZE, 0)]
    pieces = innermost(event for _, event in events)
    for thread in (1, 2):
        for moment in range(SIZE):
            inside = [
                (depth, event.name)
                for depth, event in events
                if event.thread == (0, thread) and event.begin <= moment < event.end
            ]
            names = [p.name for p in pieces if p.thread == (0, thread) and p.begin <= moment < p.end]
            assert names == [max(inside)[1]] if inside else names == []


def span(name: str, category: str, begin: float, end: float, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "pid": 0, "tid": thread, "ts": begin, "dur": end - begin}


def two_steps_on_a_gpu() -> list[dict[str, Any]]:
    """Microseconds 1000 to 3000: two steps, with an evaluation from 2000 to 2200 between them. The device computes
    1200-1500, 1700-2000 and 2500-2700; NCCL 1400-1800 and 2700-2800; of the evaluation 2050-2150."""
    return [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {}},
        span(f"{STEP_LABEL}11", "user_annotation", 1000, 2200),
        span(f"{STEP_LABEL}12", "user_annotation", 2200.5, 3000),
        span("evaluation", "user_annotation", 2000, 2200),
        span("data_wait", "user_annotation", 1010, 1190),
        span("forward", "user_annotation", 1190, 1400),
        span("forward", "gpu_user_annotation", 1000, 3000, thread=7),
        span("backward", "user_annotation", 2210, 2490),
        span("aten::linear", "cpu_op", 2200.5, 2300),
        span("aten::item", "cpu_op", 2300, 2499),
        span("cudaStreamSynchronize", "cuda_runtime", 2310, 2480),
        span("gemm", "kernel", 1200, 1500, thread=7),
        span("gemm", "kernel", 1700, 1900, thread=7),
        span("Memcpy HtoD", "gpu_memcpy", 1900, 2000, thread=8),
        span("gemm", "kernel", 2050, 2150, thread=7),
        span("gelu", "kernel", 2500, 2700, thread=7),
        span("ncclDevKernel_AllReduce", "kernel", 1400, 1800, thread=9),
        span("ncclDevKernel_AllReduce", "kernel", 2700, 2800, thread=9),
    ]


def test_a_gpus_gaps_and_communication_against_counting_every_microsecond() -> None:
    events = two_steps_on_a_gpu()
    found = examine(events, window(forward=0.0004, data_wait=0.00018))

    profiled = set(range(1000, 3000)) - set(range(2000, 2200))
    device = [each for each in events if each.get("cat") in DEVICE_WORK]

    def covered(words: Iterable[dict[str, Any]]) -> set[int]:
        return moments((each["ts"], each["ts"] + each["dur"]) for each in words) & profiled

    nccl = covered(each for each in device if "nccl" in each["name"])
    others = covered(each for each in device if "nccl" not in each["name"])
    assert found.idle == pytest.approx(len(profiled - nccl - others) / len(profiled))
    assert found.communication == pytest.approx(len(nccl) / len(profiled))
    assert found.exposed == pytest.approx(len(nccl - others) / len(profiled))

    assert found.split["step"] == pytest.approx(1800e-6 / 2), "without the evaluation"
    assert found.split["data_wait"] == pytest.approx(90e-6)
    assert found.split["other"] == pytest.approx((1800e-6 - 580e-6) / 2)
    # gemm and NCCL took 500 us each, gelu 200 and the copy 100; the evaluation's gemm does not count
    ranked = [(each.name, round(each.seconds * 1e6), each.calls) for each in found.operations]
    assert sorted(ranked[:2]) == [("gemm", 500, 2), ("ncclDevKernel_AllReduce", 500, 2)]
    assert ranked[2:] == [("gelu", 200, 1), ("Memcpy HtoD", 100, 1)]
    assert [each.share for each in found.operations] == pytest.approx([5 / 13, 5 / 13, 2 / 13, 1 / 13])
    gaps = [(round(gap.begin * 1e6), round(gap.seconds * 1e6), gap.phase, gap.doing) for gap in found.gaps]
    assert gaps == [(1200, 300, "backward", "cudaStreamSynchronize"), (0, 200, "data_wait", ""), (1800, 200, "", "")]

    page = summarise(events, window(forward=0.0004, data_wait=0.00018))
    assert "| data wait | 0.09 | 10.0% |" in page
    assert "| 0.30 | 1.20 | backward | `cudaStreamSynchronize` |" in page
    assert "| 0.20 | 0.00 | data wait | no operation: Python, or waiting |" in page
    assert f"idle for {700 / 1800:.1%} of the time" in page


def test_the_page_says_what_stands_out_and_nothing_else() -> None:
    def words(**spent: float) -> str:
        events = [span(f"{STEP_LABEL}11", "user_annotation", 0, 1e6), span("aten::mm", "cpu_op", 0, 1e6)]
        return " ".join(advise(examine(events, window(10, 11, **spent))))

    assert "Nothing stands out: 99.0%" in words(forward=0.34, backward=0.65, data_wait=0.01)
    assert "`aten::mm` with 100.0% of all operations' time" in words()
    for phase, told in (("data_wait", "`data.workers`"), ("checkpoint_stall", "`checkpoint.every`")):
        assert told not in words(forward=0.3, backward=0.66, **{phase: 0.04})
        assert told in words(forward=0.3, backward=0.64, **{phase: 0.06})
    assert "optimizer is 20.0%" in words(forward=0.3, backward=0.5, optimizer=0.2)
    assert "12.0% of a step is outside of all phases" in words(forward=0.3, backward=0.58)


def test_a_trace_without_a_step_is_no_trace_of_ours() -> None:
    with pytest.raises(ValueError, match="no step"):
        examine([span("aten::mm", "cpu_op", 0, 10)], window())


def test_the_page_of_a_real_trace(tmp_path: Path) -> None:
    """Matrix products of 2 x 512^3 FLOPs between additions of 512 numbers."""
    a, b = torch.randn(512, 512), torch.randn(512)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for step in (1, 2):
            with record_function(f"{STEP_LABEL}{step}"):
                for _ in range(10):
                    b = torch.mm(a, a)[0] * 0 + b
                with record_function("evaluation"):
                    torch.linalg.svd(torch.randn(64, 64))
    trace.export_chrome_trace(str(tmp_path / "trace.json.gz"))
    with gzip.open(tmp_path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    found = examine(events, window(0, 2))
    assert found.operations[0].name == "aten::mm"
    assert found.operations[0].calls == 20
    assert all(0 <= each.share <= 1 for each in found.operations)
    assert sum(each.share for each in found.operations) == pytest.approx(1)
    assert not [each.name for each in found.operations if "svd" in each.name], "an evaluation is no part of a step"
    assert 0 < sum(each.seconds for each in found.operations) <= 2 * found.split["step"]
    assert (found.idle, found.gaps, found.communication, found.exposed) == (None, [], 0, 0)
    page = summarise(events, window(0, 2))
    assert "`aten::mm` |" in page
    assert "Not defined on a CPU" in page
    assert len(page.splitlines()) < 70
