"""What a run says about itself: curves, accuracy, speed and compute, to MLflow, the terminal and a summary.

History joins its parts: totals and rates (`Meter`), the terminal (`Reporter`), MLflow (`Tracker`), bad samples
(`Quarantine`), jumps of the curves (`Spikes`) and traces (`Profiler`). Every rank has one, since sums over ranks are
collective; only rank 0 reports.
"""

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Self

import torch.distributed as dist

import model
from data import Batch, Loader, open_index, storage
from orchestrator import names
from orchestrator.cluster.board import Ended
from orchestrator.engine.step import Engine, StepResult
from orchestrator.history.meter import Meter
from orchestrator.history.profile.profiler import Profiler
from orchestrator.history.quarantine import Quarantine
from orchestrator.history.reporter import Reporter
from orchestrator.history.spikes import Spikes
from orchestrator.job.kinds import NetworkJob
from orchestrator.run.folder import mark_first_step
from orchestrator.run.measured import write_measured
from orchestrator.run.summary import write_summary
from orchestrator.run.totals import Totals
from orchestrator.run.training_set import TrainingSet
from orchestrator.tracking.description import describe_run
from orchestrator.tracking.points import Status
from orchestrator.tracking.tracker import Tracker

FIRST_STEP_SECONDS = 20.0
"""The longest that the connection to MLflow waits for the first step, beside which importing MLflow would be slow. The
first step of a large network may take minutes; its run should appear in MLflow before."""

log = logging.getLogger(__name__)

NOT_SHOWN = ("images", "bad_samples", "judged_images")
"""Metrics of a held-out set that the terminal leaves out."""


class History:
    """The curves and totals of one run.

    Args:
        job: the job.
        run_url: the run's folder.
        run_id: its identity in MLflow.
        reporter: the terminal.
        data: the training set.
        engine: the network, for its device and the time of its phases.
        total_steps: length of the run.

    Attributes:
        quarantine: the account of bad samples.
        latest: the newest value of every metric. Checkpoints hold it.
    """

    def __init__(
        self,
        job: NetworkJob,
        run_url: str,
        run_id: str,
        reporter: Reporter,
        data: TrainingSet,
        engine: Engine,
        *,
        total_steps: int,
    ) -> None:
        self._meter = Meter(engine, model.training_flops(job.model.vit_config()))
        self._reporter = reporter
        self._run_url = run_url
        self._total_steps = total_steps
        self._world = dist.get_world_size()

        self._order = data.order
        self._epoch = 0
        self._spikes = Spikes()
        self.quarantine = Quarantine(
            run_url, limit=job.data.max_bad_fraction, set_size=data.order.num_samples, device=engine.device
        )
        self.latest: dict[str, float] = {}

        self._tracker: Tracker | None = None
        self._profiler: Profiler | None = None
        if dist.get_rank() == 0:
            self._tracker = self._open_tracker(job, run_id, data)
            if job.profile is not None:
                self._profiler = Profiler(
                    job.profile.steps,
                    engine,
                    run_url,
                    device=self._meter.peak.name,
                    workers=self._world,
                    deliver=self._tracker.attach,
                    say=reporter.say,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._tracker is not None:
            if self._profiler is not None:
                self._profiler.close(timeout=5.0)
            status: Status = "KILLED" if issubclass(kind, Ended) else "FAILED"
            self._tracker.close(status, timeout=5.0)  # the next attempt, if there is one, sets it running again
        self.quarantine.close()

    def resume(self, step: int, totals: Totals, latest: dict[str, float]) -> None:
        """Start counting at `step`, with the totals and metrics of a checkpoint. The time before was start-up."""
        self.latest = dict(latest)
        self.quarantine.resume(latest)
        self._meter.resume(totals)
        if self._profiler is not None:
            self._profiler.resume(step)
        self._reporter.resume(step)

    def timed(self, batches: Loader) -> Iterator[Batch]:
        """The batches, counting the time that training waits for them."""
        return self._meter.timed(batches)

    def stepped(self, step: int, result: StepResult, batch: Batch) -> None:
        """Note a step; `step` is the number of steps done with it."""
        self._meter.stepped(result)
        self.quarantine.add(batch.bad, slots=int(batch.valid.sum()) + len(batch.bad))
        self._epoch = self._order.epoch(batch.step)
        if self._profiler is not None:
            self._profiler.stepped(step)
        self._reporter.stepped(step)
        if self._tracker is not None:
            self._tracker.begin()
            if step == 1:
                threading.Thread(target=self._mark_first_step, name="first-step", daemon=True).start()

    def _mark_first_step(self) -> None:
        """Beside training, since a store may be slow. Without the mark a checkpoint or a point does its work."""
        try:
            mark_first_step(self._run_url)
        except Exception as error:  # each store has its own
            log.warning("no mark of the first step: %s", storage.describe(error))

    def sync_totals(self) -> Totals:
        """Bring the totals and the account of bad samples up to the last step. Collective; a GPU is waited for."""
        self._meter.sync()
        for message in self.quarantine.collect(self._epoch):
            self._reporter.say(message)
        self.latest.update(self.quarantine.metrics())
        return self._meter.totals

    def log_training(
        self, step: int, *, lr: float, gradient_norm: float, epoch: float, health: Mapping[str, float]
    ) -> None:
        """A point of the training curves. The loss is that of this step: the mean over its valid samples.

        A loss or norm that is not finite is left out of the curves; `health` counts such steps.

        Raises:
            TooManyBadSamples: on all ranks.
        """
        sums = self._meter.sum_over_ranks()
        self.sync_totals()
        window = self._meter.next_window(sums)

        curves = {names.LOSS: sums.loss, names.GRADIENT_NORM: gradient_norm}
        curves = {name: value for name, value in curves.items() if math.isfinite(value)}
        marks, lines = self._spikes.mark(step, curves)
        if names.LOSS in lines:  # the gradient's norm jumps often, and is only marked
            self._reporter.say_once(lines[names.LOSS])

        point = curves | marks | {names.LEARNING_RATE: lr, names.EPOCH: epoch}
        point |= health
        point |= self.quarantine.metrics()
        point |= window.metrics
        self._log(step, point)
        self._reporter.trained(
            step,
            loss=sums.loss,
            images_per_second=window.images_per_second,
            mfu=window.mfu,
            seconds_a_step=window.seconds_a_step,
        )
        self.quarantine.check()

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Points of an evaluation: metrics by what was measured (`eval/NAME` for a held-out set).

        Call `sync_totals` before the evaluation starts.
        """
        self._meter.pause()
        self._log(
            step, {f"{name}/{metric}": value for name, found in results.items() for metric, value in found.items()}
        )
        self.latest[names.EVALUATED] = step
        for name, found in results.items():
            shown = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items() if metric not in NOT_SHOWN)
            shown = shown or "no valid samples"
            self._reporter.say_once(f"step {step:,}: {name.removeprefix('eval/')}: {shown}")

    def measured(self, digests: Mapping[str, str]) -> None:
        """Note in the run's folder which sets have been measured; their digests by name."""
        if self._tracker is not None:
            try:
                write_measured(self._run_url, digests)
            except Exception as error:  # each store has its own; the sets are measured once more at the next start
                log.warning("no note of the measured sets: %s", storage.describe(error))

    def saved(self, seconds: float) -> None:
        """Note that training stood still for `seconds` while a checkpoint was copied. Call `sync_totals` before."""
        self._meter.stalled(seconds)
        if self._tracker is not None:
            self._tracker.copy_waiting()

    def end(self) -> None:
        """Close the tracker and leave `summary.json` in the run's folder."""
        if self._tracker is None:
            return
        if self._profiler is not None:
            self._profiler.close()
        complete = self._tracker.close("FINISHED")
        if not complete:
            trouble = self._tracker.trouble or "MLflow is unreachable"
            later = (
                "undelivered metrics and files are saved with the run, and running the same command again delivers them"
            )
            self._reporter.say(f"{trouble}; {later}")
        speed, peak = self._meter.images_per_second(), self._meter.peak
        summary = {
            "step": self._total_steps,
            "metrics": self.latest,
            "images_per_second": self.latest.get(names.IMAGES_PER_SECOND, 0.0) if speed is None else speed,
            "totals": self._meter.totals.to_dict(),
            "device": {"name": peak.name, "peak_flops": peak.flops_per_second, "peak_is": peak.source},
            "workers": self._world,
            "mlflow_run_id": self._tracker.run_id,
            "mlflow_complete": complete,
            "mlflow": self._tracker.url_hint(),
        }
        write_summary(self._run_url, summary)
        self._reporter.show()

    def _open_tracker(self, job: NetworkJob, run_id: str, data: TrainingSet) -> Tracker:
        held_out = {name: open_index(settings.url) for name, settings in job.data.eval.items()}
        description = describe_run(job, run_id, data, held_out, workers=self._world, device=self._meter.peak.name)
        return Tracker.beside(description, self._run_url, begin_seconds=FIRST_STEP_SECONDS, say=self._reporter.say)

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        if self._tracker is not None:
            self._tracker.log(step, metrics)
