"""Where the wall time of a run goes, against a clock that only the test moves, on two real ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from infra.local.ranks import run_ranks
from orchestrator import names
from orchestrator.engine.devices import DevicePeak
from orchestrator.engine.phases import Phases
from orchestrator.engine.step import StepResult
from orchestrator.history import meter
from orchestrator.history.meter import Meter, Window
from orchestrator.run.totals import Totals

PEAK = 2e12  # FLOP/s of one device
FLOPS = 10**9  # of one image
BEFORE = Totals(steps=100, samples=1600, flops=1600 * FLOPS, device_seconds=50.0, peak_flops=50.0 * PEAK)


class Clock:
    """Stands for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Batches:
    """Stands for a loader: each batch takes half a second."""

    def __init__(self, clock: Clock, number: int) -> None:
        self._clock = clock
        self._number = number

    def __iter__(self) -> Any:
        for batch in range(self._number):
            self._clock.now += 0.5
            yield batch

    def statistics(self) -> SimpleNamespace:
        return SimpleNamespace(bytes_read=300, bytes_used=100, retries=2)


def step(loss_sum: float, valid: int) -> StepResult:
    """A rank's own sum of losses, and the valid samples of all ranks."""
    applied = torch.tensor(True)
    return StepResult(torch.tensor(loss_sum), torch.tensor(float(valid)), applied)


def measured() -> dict[str, Any]:
    """Start-up of 7 s; 4 steps of 2 s; an evaluation of 5 s; a checkpoint of 3 s; 2 steps of 1 s."""
    clock = Clock()
    meter.time = clock  # type: ignore[assignment]
    meter.device_peak = lambda device, dtype: DevicePeak("a device", PEAK, "datasheet")
    device = torch.device("cpu")
    engine: Any = SimpleNamespace(phases=Phases(device), device=device, dtype=torch.float32)
    found: dict[str, Any] = {}

    measure = Meter(engine, FLOPS)
    clock.now += 7
    measure.resume(BEFORE)
    found["trained nothing"] = measure.images_per_second()
    batches: Any = Batches(clock, 6)
    rank = dist.get_rank()
    for number in measure.timed(batches):
        clock.now += 1.5 if number < 4 else 0.5
        measure.stepped(step(loss_sum=8.0 + rank, valid=16))
        if number == 3:
            sums = measure.sum_over_ranks()
            measure.sync()
            found["first"] = measure.next_window(sums)
            clock.now += 5
            measure.pause()
            measure.sync()
            clock.now += 3
            measure.stalled(3.0)
    sums = measure.sum_over_ranks()
    measure.sync()
    found["second"] = measure.next_window(sums)
    found["sums"] = sums
    found["totals"] = measure.totals
    found["rate"] = measure.images_per_second()
    return found


def test_every_second_is_training_or_idle() -> None:
    first, second = run_ranks(2, measured)
    assert first["totals"] == second["totals"]
    new = first["totals"] - BEFORE
    assert (new.steps, new.samples, new.flops) == (6, 96, 96 * FLOPS)
    assert new.device_seconds == pytest.approx(2 * (4 * 2.0 + 2 * 1.0))
    assert new.device_seconds_allocated == pytest.approx(2 * (7 + 8 + 5 + 3 + 2))
    assert first["trained nothing"] is None
    assert first["rate"] == pytest.approx(96 / 10.0), "start-up, evaluation and checkpoint do not count"


def test_a_window_is_what_came_since_the_previous_point() -> None:
    found = run_ranks(2, measured)[0]
    windows: list[Window] = [found["first"], found["second"]]
    assert [w.images_per_second for w in windows] == pytest.approx([64 / 8.0, 32 / 2.0])
    assert [w.seconds_a_step for w in windows] == pytest.approx([2.0, 1.0])
    assert [w.mfu for w in windows] == pytest.approx([8.0 * FLOPS / (2 * PEAK), 16.0 * FLOPS / (2 * PEAK)])
    metrics = [w.metrics for w in windows]
    assert [m[names.DATA_WAIT_FRACTION] for m in metrics] == pytest.approx([2.0 / 8, 1.0 / 2])
    assert [m[names.CHECKPOINT_STALL_SECONDS] for m in metrics] == [0.0, 3.0]
    assert [m[names.phase_time("checkpoint_stall")] for m in metrics] == pytest.approx([0.0, 1.5])
    assert [m[names.SAMPLES] for m in metrics] == [1600 + 64, 1600 + 96]


def test_sums_are_over_all_ranks() -> None:
    sums = run_ranks(2, measured)[0]["sums"]
    assert sums.loss == pytest.approx((8.0 + 9.0) / 16)
    assert (sums.bytes_read, sums.bytes_used, sums.retries) == (600, 200, 4)
