"""How fast a run trains and what it has cost: totals since its first step, and rates of the steps since a point.

Wall time is divided without a gap: every second since the meter was made counts either as training or as idle
(start-up, evaluation, a checkpoint's copy). Numbers stay on the device until a point is due, so that no step waits for
them.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from data import Batch, Loader
from orchestrator import names
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.engine.devices import device_peak
from orchestrator.engine.phases import CHECKPOINT_STALL, DATA_WAIT, per_step
from orchestrator.engine.step import Engine, StepResult
from orchestrator.run.totals import Totals


@dataclass(frozen=True)
class Sums:
    """Sums over ranks, of the last step and of the attempt.

    Attributes:
        loss: of the last step, the mean over its valid samples; NaN if it has none.
        bytes_read, bytes_used: of the training set, since the attempt began.
        retries: requests that were repeated for it.
    """

    loss: float
    bytes_read: float
    bytes_used: float
    retries: float


@dataclass(frozen=True)
class Window:
    """The steps since the previous point of the curves.

    Attributes:
        images_per_second: over all ranks.
        mfu: model FLOPs utilisation, 0 to 1.
        seconds_a_step: of training.
        metrics: all of the above and more, under the names of MLflow.
    """

    images_per_second: float
    mfu: float
    seconds_a_step: float
    metrics: dict[str, float]


class Meter:
    """Every rank has one, and calls its methods at the same steps.

    Args:
        flops_per_image: training FLOPs (`model.training_flops`).

    Attributes:
        peak: what one device can do.
        totals: of the run, up to the last `sync` or `pause`.
    """

    def __init__(self, engine: Engine, flops_per_image: int) -> None:
        self._mark = time.monotonic()  # up to here all time is counted
        self._phases = engine.phases
        self._world = dist.get_world_size()
        self._flops_per_image = flops_per_image
        self.peak = device_peak(engine.device, engine.dtype)

        self._loader: Loader | None = None
        self._result: StepResult | None = None
        self._steps = 0  # since the last `sync`
        self._valid = torch.zeros((), dtype=torch.float64, device=engine.device)  # samples since then

        self._waited = 0.0  # seconds for batches, since the last point
        self._stalled = 0.0  # seconds for checkpoints, since the attempt began
        self.totals = self._window_start = self._attempt_start = Totals()
        self._phases_then = self._phases.totals()

    def resume(self, totals: Totals) -> None:
        """Go on from the totals of a checkpoint. The time before counts as idle."""
        self.totals = totals
        self.pause()
        self._window_start = self._attempt_start = self.totals
        self._phases_then = self._phases.totals()

    def timed(self, batches: Loader) -> Iterator[Batch]:
        """The batches, counting the time that training waits for them."""
        self._loader, iterator = batches, iter(batches)
        while True:
            asked = time.monotonic()
            with self._phases.time(DATA_WAIT):
                batch = next(iterator, None)
            if batch is None:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def stepped(self, result: StepResult) -> None:
        """Count a step."""
        self._valid += result.valid
        self._result = result
        self._steps += 1

    def sync(self) -> None:
        """Bring the totals up to the last step: the time since the last call was training. A GPU is waited for."""
        samples = round(float(self._valid))
        self.totals = self.totals.add(
            steps=self._steps,
            samples=samples,
            flops_per_image=self._flops_per_image,
            seconds=self._elapsed(),
            devices=self._world,
            peak=self.peak.flops_per_second,
        )
        self._valid.zero_()
        self._steps = 0

    def pause(self) -> None:
        """Count the time since the last call as idle. Call `sync` before what is not training begins."""
        self.totals = self.totals.add_idle(
            seconds=self._elapsed(), devices=self._world, peak=self.peak.flops_per_second
        )

    def stalled(self, seconds: float) -> None:
        """Count the time since `sync` as idle, `seconds` of it as waiting for a checkpoint."""
        self._stalled += seconds
        self._phases.add(CHECKPOINT_STALL, seconds)
        self.pause()

    def sum_over_ranks(self) -> Sums:
        """Sums of the last step and of the attempt. Collective."""
        assert self._result is not None
        assert self._loader is not None
        read = self._loader.statistics()
        counts = [float(number) for number in (read.bytes_read, read.bytes_used, read.retries)]
        tensors = [torch.tensor(count, device=self._valid.device) for count in counts]
        loss_sum, *sums = all_reduce_sums([self._result.loss_sum, *tensors])
        valid = float(self._result.valid)
        return Sums(loss_sum / valid if valid else math.nan, *sums)

    def next_window(self, sums: Sums) -> Window:
        """End the present window and begin the next one. Call `sync` before."""
        window, self._window_start = self.totals - self._window_start, self.totals
        before, self._phases_then = self._phases_then, self._phases.totals()
        waited, self._waited = self._waited, 0.0

        seconds = window.device_seconds / self._world
        rate = window.samples / seconds if seconds else 0.0
        spent = {phase: now - before[phase] for phase, now in self._phases_then.items()}
        split = per_step(spent, seconds=seconds + spent[CHECKPOINT_STALL], steps=window.steps)
        metrics = {
            names.SAMPLES: self.totals.samples,
            names.IMAGES_PER_SECOND: rate,
            names.MFU: window.mfu,
            names.DATA_WAIT_FRACTION: min(1.0, waited / seconds) if seconds else 0.0,
            names.BYTES_READ: sums.bytes_read,
            names.BYTES_READ_OVER_USED: sums.bytes_read / max(sums.bytes_used, 1.0),
            names.RETRIES: sums.retries,
            names.CHECKPOINT_STALL_SECONDS: self._stalled,
        }
        metrics |= {names.phase_time(phase): value for phase, value in split.items()}
        metrics |= self.totals.metrics()
        return Window(rate, window.mfu, seconds / max(1, window.steps), metrics)

    def images_per_second(self) -> float | None:
        """Over all steps of this attempt; None if it trained nothing."""
        attempt = self.totals - self._attempt_start
        if not attempt.device_seconds:
            return None
        return attempt.samples * self._world / attempt.device_seconds

    def _elapsed(self) -> float:
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds
