"""What a run says about itself: the training curve, accuracy, speed and compute, to MLflow, the terminal and a summary.

All ranks hold one, since sums over ranks are collective; rank 0 alone talks. Numbers stay on the device until a point
is due, so that the step never waits for them.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import ray
import torch
import torch.distributed as dist

import model
from data import Loader, open_index
from data.loading.loader import Batch
from orchestrator import names
from orchestrator.cluster.board import Progress
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.engine.devices import device_peak
from orchestrator.engine.phases import CHECKPOINT_STALL, DATA_WAIT, per_step
from orchestrator.engine.step import Engine, StepResult
from orchestrator.history.profile.profiler import Profiler
from orchestrator.history.quarantine import Quarantine
from orchestrator.history.spikes import Spikes
from orchestrator.job.kinds import NetworkJob
from orchestrator.run.summary import write_summary
from orchestrator.run.totals import Totals
from orchestrator.run.training_set import TrainingSet
from orchestrator.tracking.description import describe_run
from orchestrator.tracking.tracker import Tracker
from orchestrator.wording import count

COUNTS = ("images", "bad_samples")  # metrics of a held-out set that are not worth a word each time
SHOW_SECONDS = 0.5  # between two updates of the progress bar


class History:
    """The curves and totals of one run.

    Args:
        job, run_url, run_id: the run; its folder; its identity in MLflow.
        board: the progress actor.
        data: the training set.
        total_steps: length of the run.
    """

    def __init__(
        self,
        job: NetworkJob,
        run_url: str,
        run_id: str,
        board: Any,
        data: TrainingSet,
        engine: Engine,
        *,
        total_steps: int,
    ) -> None:
        self._mark = time.monotonic()
        self._engine, self._board, self._run_url, self._total_steps = engine, board, run_url, total_steps
        self._phases = engine.phases
        self._talks, self._world = dist.get_rank() == 0, dist.get_world_size()
        self._peak = device_peak(engine.device, engine.dtype)
        self._flops_per_image = model.training_flops(job.model.vit_config())
        self._valid = torch.zeros((), dtype=torch.float64, device=engine.device)
        self._result: StepResult | None = None
        self._steps, self._waited, self._stalled = 0, 0.0, 0.0
        self._loader: Loader | None = None
        self._order, self._epoch = data.order, 0
        self.quarantine = Quarantine(
            run_url, limit=job.data.max_bad_fraction, set_size=data.order.num_samples, device=engine.device
        )
        self._spikes = Spikes()
        self._progress = Progress(total_steps=total_steps, workers=self._world)
        self._shown = 0.0
        self._answer: ray.ObjectRef[int] | None = None
        self.latest: dict[str, float] = {}
        self._tracker: Tracker | None = None
        self._profiler: Profiler | None = None
        if self._talks:
            self._tracker = self._connect(job, run_id, data)
            if job.profile is not None:
                self._profiler = Profiler(
                    job.profile.steps,
                    engine,
                    run_url,
                    device=self._peak.name,
                    workers=self._world,
                    deliver=self._tracker.attach,
                    say=self.say,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._tracker is not None:
            if self._profiler is not None:
                self._profiler.close(timeout=5.0)
            self._tracker.close("FAILED", timeout=5.0)  # the next attempt, if there is one, sets it running again
        self.quarantine.close()

    def resume(self, step: int, totals: Totals, latest: dict[str, float]) -> None:
        """Start counting at `step`, with what the run has cost and the metrics it had so far.

        The time since construction was start-up.
        """
        self._totals = totals
        self.latest = dict(latest)
        self.quarantine.resume(latest)
        self._hold()
        self._window = self._first = self._totals
        self._timed = self._phases.totals()
        if self._profiler is not None:
            self._profiler.resume(step)
        self._progress.step, self._progress.note = step, ""
        if step and self._talks:
            self.say(f"continuing at step {step} of {self._total_steps} on {count(self._world, 'worker')}")
        self._show(force=True)

    def workers_wanted(self) -> bool:
        """Whether another number of workers is wanted, as the board answered rank 0's last report."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            wanted, self._answer = ray.get(self._answer), None
            return wanted not in (0, self._world)
        return False

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

    def stepped(self, step: int, result: StepResult, batch: Batch) -> None:
        """Note a step; `step` is the number of steps done with it."""
        self._valid += result.valid
        self._result = result
        self._steps += 1
        self.quarantine.add(batch.bad, slots=int(batch.valid.sum()) + len(batch.bad))
        self._epoch = self._order.epoch(batch.step)
        self._progress.step = step
        if self._profiler is not None:
            self._profiler.stepped(step)
        self._show()

    def sync_totals(self) -> Totals:
        """Bring the totals and the account of bad samples up to the last step. Collective; a GPU is waited for."""
        samples = round(float(self._valid))
        seconds = self._elapsed()
        self._totals = self._totals.add(
            steps=self._steps,
            samples=samples,
            flops_per_image=self._flops_per_image,
            seconds=seconds,
            devices=self._world,
            peak=self._peak.flops_per_second,
        )
        self._valid.zero_()
        self._steps = 0
        for message in self.quarantine.collect(self._epoch):
            self.say(message)
        self.latest.update(self.quarantine.metrics())
        return self._totals

    def log_training(
        self, step: int, *, lr: float, gradient_norm: float, epoch: float, health: Mapping[str, float]
    ) -> None:
        """A point of the training curves. The loss is that of this step: the mean over its valid samples.

        A loss or norm that is not finite is left out of the curves; `health` counts such steps.

        Raises:
            TooManyBadSamples: on all ranks alike.
        """
        assert self._result is not None
        reading = self._reading()
        loss_sum, read, used, retries = all_reduce_sums([self._result.loss_sum, *reading])
        loss = loss_sum / max(1.0, float(self._result.valid))
        totals = self.sync_totals()
        window, self._window = totals - self._window, totals
        seconds = window.device_seconds / self._world
        rate = window.samples / seconds if seconds else 0.0
        before, self._timed = self._timed, self._phases.totals()
        spent = {phase: now - before[phase] for phase, now in self._timed.items()}
        split = per_step(spent, seconds=seconds + spent[CHECKPOINT_STALL], steps=window.steps)
        curves = {names.LOSS: loss, names.GRADIENT_NORM: gradient_norm}
        curves = {name: value for name, value in curves.items() if math.isfinite(value)}
        marks, lines = self._spikes.mark(step, curves)
        if self._talks and names.LOSS in lines:  # the gradient's norm jumps often, and is marked only
            self.say(lines[names.LOSS])
        p = self._progress
        p.loss, p.rate, p.mfu = loss, rate, window.mfu
        p.seconds_left = (self._total_steps - step) * seconds / max(1, window.steps)
        self._log(
            step,
            {
                **curves,
                **marks,
                **health,
                names.LEARNING_RATE: lr,
                names.EPOCH: epoch,
                names.SAMPLES: totals.samples,
                **self.quarantine.metrics(),
                names.IMAGES_PER_SECOND: rate,
                names.MFU: window.mfu,
                names.DATA_WAIT_FRACTION: min(1.0, self._waited / seconds) if seconds else 0.0,
                names.BYTES_READ: read,
                names.BYTES_READ_OVER_USED: read / max(used, 1.0),
                names.RETRIES: retries,
                names.CHECKPOINT_STALL_SECONDS: self._stalled,
                **{names.phase_time(phase): value for phase, value in split.items()},
                **totals.metrics(),
            },
        )
        self._waited = 0.0
        self._show(force=True)
        self.quarantine.check()

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Points of an evaluation: metrics by what was measured (`eval/NAME` for a held-out set).

        Call `sync_totals` before the evaluation starts.
        """
        self._hold()
        self._log(
            step, {f"{name}/{metric}": value for name, found in results.items() for metric, value in found.items()}
        )
        self.latest[names.EVALUATED] = step
        for name, found in results.items():
            shown = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items() if metric not in COUNTS)
            if self._talks:
                self.say(f"step {step}: {name.removeprefix('eval/')}: {shown}")

    def saved(self, seconds: float) -> None:
        """Note that training stood still for `seconds` while a checkpoint was staged."""
        self._stalled += seconds
        self._phases.add(CHECKPOINT_STALL, seconds)
        self._hold()
        if self._tracker is not None:
            self._tracker.copy_waiting()

    def note(self, text: str) -> None:
        """What the run is doing besides training, shown beside the progress; empty when it trains."""
        self._progress.note = text
        self._show(force=True)

    def say(self, message: str) -> None:
        """A line for the person at the terminal, from any rank."""
        self._board.say.remote(message)

    def end(self) -> None:
        """Close the tracker and leave `summary.json` in the run's folder."""
        if self._tracker is None:
            return
        if self._profiler is not None:
            self._profiler.close()
        totals = self._totals
        complete = self._tracker.close("FINISHED")
        if not complete:
            self.say("MLflow is away; what it did not get waits beside the run, and the same command delivers it later")
        summary = {
            "step": self._total_steps,
            "metrics": self.latest,
            "images_per_second": self._speed(),
            "totals": totals.to_dict(),
            "device": {
                "name": self._peak.name,
                "peak_flops": self._peak.flops_per_second,
                "peak_is": self._peak.source,
            },
            "workers": self._world,
            "mlflow_run_id": self._tracker.run_id,
            "mlflow_complete": complete,
            "mlflow": self._tracker.url_hint(),
        }
        write_summary(self._run_url, summary)
        self._show(force=True)

    def _reading(self) -> list[torch.Tensor]:
        """Bytes read, bytes used and repeated requests of this rank since the attempt began."""
        assert self._loader is not None
        found = self._loader.statistics()
        numbers = (found.bytes_read, found.bytes_used, found.retries)
        return [torch.tensor(float(number), device=self._valid.device) for number in numbers]

    def _connect(self, job: NetworkJob, run_id: str, data: TrainingSet) -> Tracker:
        held_out = {name: open_index(held_out.url) for name, held_out in job.data.eval.items()}
        description = describe_run(job, run_id, data, held_out, workers=self._world, device=self._peak.name)
        return Tracker.beside(description, self._run_url)

    def _speed(self) -> float:
        """Images/s since this attempt began; of the last window before it, if it trained nothing."""
        here = self._totals - self._first
        if here.device_seconds:
            return here.samples * self._world / here.device_seconds
        return self.latest.get(names.IMAGES_PER_SECOND, 0.0)

    def _elapsed(self) -> float:
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds

    def _hold(self) -> None:
        self._totals = self._totals.add_idle(
            seconds=self._elapsed(), devices=self._world, peak=self._peak.flops_per_second
        )

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        if self._tracker is not None:
            self._tracker.log(step, metrics)

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._talks and (force or now - self._shown > SHOW_SECONDS):
            self._shown = now
            self._answer = self._board.update.remote(self._progress)
