"""The state of a run between attempts: restored at the start of each, saved while it trains, left for the next one."""

import time
from typing import NoReturn

import torch.distributed as dist

from data import Batch
from orchestrator.checkpoint.best import Best
from orchestrator.checkpoint.manifest import complete_checkpoints
from orchestrator.checkpoint.notes import Owner
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.checkpoint.restore import restore
from orchestrator.checkpoint.saver import Saver
from orchestrator.checkpoint.upload import TakenOver
from orchestrator.cluster.board import Ended
from orchestrator.cluster.checkpoint_report import through_ray
from orchestrator.cluster.notices import PlannedExit, Reason
from orchestrator.cluster.watchdog import Heartbeat
from orchestrator.engine.collectives import on_all_ranks
from orchestrator.engine.step import Engine
from orchestrator.history.history import History
from orchestrator.history.ledger import Ledger
from orchestrator.history.reporter import Reporter
from orchestrator.job.kinds import NetworkJob
from orchestrator.names import EVALUATED, IN_A_ROW
from orchestrator.run.lock.lock import Guard
from orchestrator.run.lock.owner import Taken
from orchestrator.run.totals import Totals
from orchestrator.training.health import Diverged, Health, RollBack


class Checkpoints:
    """The checkpoints of one run. Every rank calls each method at the same step.

    Args:
        job: the job.
        run_url: the run's folder.
        owner: the run's identity and length.
        lock: the token of the command that owns the run.
        engine: weights and optimizer state.
        health, history: what is counted, saved with the weights.
        reporter: the terminal.
        heartbeat: tells that this worker lives, while it waits for a store.
    """

    def __init__(
        self,
        job: NetworkJob,
        run_url: str,
        owner: Owner,
        lock: str,
        engine: Engine,
        *,
        health: Health,
        history: History,
        reporter: Reporter,
        heartbeat: Heartbeat,
    ) -> None:
        self._job = job
        self._run_url = run_url
        self._owner = owner
        self._engine = engine
        self._health = health
        self._history = history
        self._reporter = reporter
        self._heartbeat = heartbeat

        self._ledger: Ledger
        self._saver: Saver
        self._rolled_back: RollBack | None = None
        best = job.checkpoint.best
        self._best = None if best is None else Best(best.metric, best.mode)
        self._best_value: float | None = None  # of the best checkpoint
        self._said_unmeasured = False
        self._guard = Guard(run_url, lock) if dist.get_rank() == 0 else None

    def resume(self) -> int:
        """Restore the newest intact checkpoint, and begin an attempt there.

        Returns:
            Steps done: 0 with new weights if there is no checkpoint.

        Raises:
            Diverged: the run was rolled back, and there is no checkpoint.
        """
        with self._heartbeat.in_background():
            restored = restore(self._engine, self._run_url, self._reporter.say, self._owner)
        if self._rolled_back and not restored:
            raise Diverged(f"{self._rolled_back}; there is no checkpoint to go back to")

        step = restored.step if restored else 0
        totals = Totals.from_dict(restored.totals) if restored else Totals()
        self._history.resume(step, totals, restored.metrics if restored else {})
        self._health.resume(self._history.latest)

        attempt = on_all_ranks(time.time_ns())[0]
        self._ledger = Ledger(self._run_url, dist.get_rank(), attempt)
        self._saver = Saver(
            self._engine,
            self._run_url,
            self._job.checkpoint.keep,
            self._reporter.say,
            report=through_ray,
            owner=self._owner,
            best=self._best,
            before=self._ledger.write,
            permit=self._permit,
        )
        if self._best is not None:
            self._best_value = self._value_of_best(self._best)
        return step

    def is_best(self, step: int) -> bool:
        """Whether the weights of this step were measured, and are better than those of every checkpoint."""
        if self._best is None or self._history.latest.get(EVALUATED) != step:
            return False
        if self._best.metric not in self._history.latest and not self._said_unmeasured:
            self._said_unmeasured = True
            self._reporter.say_once(f"checkpoint.best.metric = {self._best.metric}: the evaluation had no such metric")
        if (value := self._best.value(step, self._history.latest)) is None:
            return False
        return self._best.is_better(value, self._best_value)

    def record(self, batch: Batch) -> None:
        """Note which samples a step trains on, if the job asks for it."""
        if self._job.tracking.record_samples:
            self._ledger.record(batch.step, batch.ids, batch.valid)

    def save(self, step: int, *, wait: bool) -> None:
        """Save the state after `step` steps; with `wait`, return when the checkpoint is complete."""
        totals, counts = self._history.sync_totals(), self._health.metrics()
        if counts[IN_A_ROW] and not wait:
            return  # do not checkpoint weights that may themselves be the cause
        self._history.latest.update(counts)
        skipped = self._saver.skipped
        with self._heartbeat.in_background():
            self._history.saved(self._saver.save(step, totals.to_dict(), self._history.latest, wait=wait))
        if self.is_best(step) and self._saver.skipped == skipped:
            assert self._best is not None
            self._best_value = self._best.value(step, self._history.latest)

    def _value_of_best(self, best: Best) -> float | None:
        """The value of the best checkpoint, the same on all ranks."""
        found: list[float | None] = [None]
        if dist.get_rank() == 0:
            retry = StoreRetry(self._run_url, self._reporter.say)
            manifest = retry(lambda: best.of(complete_checkpoints(self._run_url, self._reporter.say, self._owner)))
            found = [None if manifest is None else best.value(manifest.step, manifest.metrics)]
        dist.broadcast_object_list(found)
        return found[0]

    def _permit(self) -> None:
        """Raise TakenOver if another command owns the run by now. An outage of the store is no reason to stop."""
        if self._guard is None:
            return
        try:
            self._guard.check()
        except Taken as owner:
            raise TakenOver(f"{owner} took the run over") from None

    def leave(self, step: int, notice: Reason) -> NoReturn:
        """Save, and end this attempt as planned.

        Raises:
            Ended: the run ends with it.
            PlannedExit: the next attempt continues.
        """
        self.save(step, wait=True)
        if notice is Reason.END:
            raise Ended(f"{notice.value}: saved at step {step}")
        raise PlannedExit(f"{notice.value}: saved at step {step}")

    def roll_back(self, reason: RollBack) -> None:
        """Prepare to restore the last checkpoint: finish uploads, count the discarded steps, and say so."""
        self._rolled_back = reason
        self._saver.finish()
        self._history.sync_totals()  # count the discarded steps here, or the retry would be charged for them
        self._reporter.say(f"{reason}; going back to the last checkpoint")
