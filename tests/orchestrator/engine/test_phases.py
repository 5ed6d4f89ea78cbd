"""The time of a step by phase: counts with a ticking clock, a simulated GPU queue against arithmetic, sums against the
wall time."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from infra.local.ranks import run_ranks
from orchestrator.engine import phases
from orchestrator.engine.phases import PHASES, Phases, per_step
from tests.orchestrator.small_run import BATCH, build_engine

STEPS = 3


def test_the_phases_of_real_steps() -> None:
    counted, seconds, wall, evaluated = run_ranks(1, phases_of_real_steps)[0]
    micro_batches = 5  # 24 slots, 5 at once
    times = STEPS * micro_batches
    assert counted == {"data_wait": 0, "forward": times, "backward": times, "optimizer": times, "checkpoint_stall": 0}
    assert all(seconds[phase] > 0 for phase in ("forward", "backward", "optimizer"))
    assert 0 < sum(seconds.values()) <= wall
    assert evaluated == dict.fromkeys(PHASES, 0)


def phases_of_real_steps() -> tuple[dict[str, float], dict[str, float], float, dict[str, float]]:
    """Seconds by phase of a few steps: with a clock that ticks once per reading, so that every phase takes one tick;
    with the real clock, and the wall time; and of an evaluation."""
    engine = build_engine(1, dropout=0.0)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8)
    labels, weights, valid = torch.zeros(BATCH, 1).long(), torch.ones(BATCH, 1), torch.ones(BATCH).bool()

    def train() -> dict[str, float]:
        before = engine.phases.totals()
        for _ in range(STEPS):
            engine.train_step(images, labels, weights, valid, None, lr=1e-3)
        return engine.phases.since(before)

    ticks = iter(range(10**6))
    phases.time = SimpleNamespace(perf_counter=lambda: next(ticks))  # type: ignore[assignment]
    counted = train()
    phases.time = time  # type: ignore[assignment]
    began = time.perf_counter()
    seconds = train()
    wall = time.perf_counter() - began
    before = engine.phases.totals()
    engine.logits(images[:5])
    return counted, seconds, wall, engine.phases.since(before)


@dataclass
class Gpu:
    """A device that works through its queue while the host fills it. Both use one clock, in seconds."""

    now: float = 0.0  # the host's time
    free_at: float = 0.0  # when the queue will be empty
    events: list["Event"] = field(default_factory=list)

    def launch(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.now) + seconds

    def wait_until(self, moment: float) -> None:
        self.now = max(self.now, moment)


class Event:
    """Stands in for `torch.cuda.Event` on the simulated GPU."""

    gpu: Gpu

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.gpu.events.append(self)

    def record(self) -> None:
        self.at = max(self.gpu.free_at, self.gpu.now)

    def query(self) -> bool:
        return self.at <= self.gpu.now

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query(), "read before the device reached it"
        return 1000 * (end.at - self.at)


def test_on_a_gpu_nothing_waits_and_nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 30 ms, launched in 2 ms, one step ahead. Every tenth batch comes 50 ms late: the device is idle for the
    part of it that remains after the previous step."""
    gpu = Gpu()
    monkeypatch.setattr(Event, "gpu", gpu, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    here = Phases(torch.device("cuda"))
    ends = [0.0]
    steps, idle = 500, 0.0
    for step in range(steps):
        late = 0.05 if step % 10 == 9 else 0.0
        with here.time("data_wait"):
            gpu.now += late
        idle += min(late, max(0.0, gpu.now - gpu.free_at))
        gpu.now += 0.001
        for _ in range(2):
            for phase, seconds in (("forward", 0.004), ("backward", 0.008), ("optimizer", 0.003)):
                with here.time(phase):
                    gpu.launch(seconds)
                    gpu.now += 0.0001
        ends.append(gpu.free_at)
        before = gpu.now
        here.totals()
        assert gpu.now == before
        gpu.wait_until(ends[-2])  # one step behind, as `Health` waits
    gpu.wait_until(gpu.free_at)
    totals = here.totals()
    assert totals["forward"] == pytest.approx(steps * 0.008)
    assert totals["backward"] == pytest.approx(steps * 0.016)
    assert totals["optimizer"] == pytest.approx(steps * 0.006)
    assert idle > 0.5
    assert totals["data_wait"] == pytest.approx(idle)
    assert len(gpu.events) <= 2 * 3 * 7, "more than three steps' events, with 7 phases each"
    assert sum(totals.values()) <= gpu.now


def test_the_rest_is_other() -> None:
    spent = {"data_wait": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 1.0, "checkpoint_stall": 0.5}
    assert per_step(spent, seconds=10.0, steps=2) == {
        "step": 5.0,
        "data_wait": 0.5,
        "forward": 1.0,
        "backward": 2.0,
        "optimizer": 0.5,
        "checkpoint_stall": 0.25,
        "other": 0.75,
    }
    assert per_step(spent, seconds=8.499999, steps=2)["other"] == 0.0


def test_a_phase_that_fails_is_not_counted() -> None:
    here = Phases(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), here.time("forward"):
        1 / 0  # noqa: B018
    here.add("checkpoint_stall", 1.5)
    assert here.totals() == dict.fromkeys(PHASES, 0.0) | {"checkpoint_stall": 1.5}
