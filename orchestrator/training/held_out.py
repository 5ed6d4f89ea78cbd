"""Measuring while training: the sets of `data.eval`, and the job's `evaluators`.

Training waits meanwhile. A notice cuts an evaluation off, and the next attempt does it again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch.profiler import record_function

from data import Batch
from orchestrator import names
from orchestrator.cluster.notices import EvaluationCutOff, Notices, Reason
from orchestrator.cluster.watchdog import Heartbeat
from orchestrator.engine.phases import EVALUATION
from orchestrator.engine.step import Engine
from orchestrator.history.history import History
from orchestrator.history.reporter import Reporter
from orchestrator.job.data_sections import HeldOutSet
from orchestrator.job.tables import EVALUATORS
from orchestrator.run.measured import owed, read_measured
from orchestrator.run.schedule import Calendar
from orchestrator.training.averaged import averaged_weights
from orchestrator.training.batches import classes_of
from orchestrator.training.measurement import Measurement
from orchestrator.training.task import Task


class HeldOut:
    """The measurements of one run. Every rank calls each method at the same step.

    Args:
        task: measures a set.
        engine: the network.
        calendar: when measurements are due.
        run_url: the run's folder.
        digests: of the sets of `data.eval`, by name.
        history: is given the results.
        reporter: the terminal.
        heartbeat, notices: of this rank, looked after with every batch.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        calendar: Calendar,
        run_url: str,
        digests: Mapping[str, str],
        *,
        history: History,
        reporter: Reporter,
        heartbeat: Heartbeat,
        notices: Notices,
    ) -> None:
        self._task = task
        self._engine = engine
        self._calendar = calendar
        self._run_url = run_url
        self._digests = digests
        self._measured = read_measured(run_url)
        self._history = history
        self._reporter = reporter
        self._heartbeat = heartbeat
        self._notices = notices

        # Bound here, so that one that cannot be imported is known before the first step.
        self._evaluators = {name: EVALUATORS.bound(keys, name) for name, keys in task.job.evaluators.items()}

    def is_owed(self, step: int) -> bool:
        """Whether an evaluation at `step`, where an attempt begins, is missing: the previous attempt was interrupted
        before it was complete, or the run is over and has not measured all sets."""
        latest = self._history.latest
        if self._calendar.is_over(step) and owed(self._digests, self._measured, latest):
            return True
        return self._calendar.evaluation_due(step) and latest.get(names.EVALUATED, 0) < step

    def measure(self, step: int) -> Reason | None:
        """Measure what is due with the weights after `step` updates.

        Returns:
            None; or the notice that cut the evaluation off, of which then nothing is kept.
        """
        self._history.sync_totals()
        try:
            with record_function(EVALUATION):
                results = self._results(step)
        except EvaluationCutOff as cut_off:
            return cut_off.reason
        finally:
            self._reporter.note("")
        self._history.evaluated(step, results)
        if self._calendar.held_out_due(step):
            self._measured = dict(self._digests)
            self._history.measured(self._measured)
        return None

    def _results(self, step: int) -> dict[str, dict[str, float]]:
        """Metrics by what was measured."""
        job, results = self._task.job, dict[str, dict[str, float]]()
        measurement = Measurement(
            self._engine, job, step, classes_of(job), self._watched, self._history.quarantine.add_held_out
        )
        sets = job.data.eval if self._calendar.held_out_due(step) else {}
        results |= self._measure_sets(measurement, sets, names.held_out)
        if job.optimizer.ema is not None and sets:
            with averaged_weights(self._engine):
                results |= self._measure_sets(measurement, sets, names.averaged)
        for name, evaluate in self._evaluators.items():
            if self._calendar.evaluator_due(name, step):
                self._reporter.note(f"evaluating {name}")
                results[name] = evaluate(measurement)
        return results

    def _measure_sets(
        self, measurement: Measurement, sets: Mapping[str, HeldOutSet], named: Callable[[str], str]
    ) -> dict[str, dict[str, float]]:
        results = {}
        for name, settings in sets.items():
            self._reporter.note(f"evaluating {name}")
            with measurement.open(name, settings.url, settings.augment, settings.positive) as held_out:
                results[named(name)] = self._task.measure(self._engine, held_out)
        return results

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with a heartbeat and a look at the notices before each."""
        return self._notices.check_each(self._heartbeat.around(batches))
