"""The history of a run in MLflow, written beside training and never in its way.

    log() ──> SpooledQueue (memory and a file) ──> sender thread ──> MLflow
                        ^
    system sampler ─────┘

`log` costs microseconds whatever the store does. One thread speaks to MLflow (`mlflow_run.py`), and imports it, since
that takes seconds. While the store is away that thread tries again, ever less often, and points wait in the queue,
whose file also survives the process: the next tracker of the same run delivers them first. Points arrive in order,
and once each.
"""

import dataclasses
import hashlib
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.spool import Record, SpooledQueue

Status = Literal["FINISHED", "FAILED", "KILLED"]

LONGEST_WAIT = 30.0
"""Seconds between two tries while the store stays away; the first ones come after 1, 2, 4 ..."""

RECORDS_AT_ONCE = 256
"""`log` calls delivered together."""

_HTTP_SETTINGS = {
    # Every failure comes back here at once, where the queue is; MLflow would retry for minutes and hold the thread.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedDataset:
    """A set of samples that the run reads: `context` is "train" or "eval", `digest` that of its index."""

    context: str
    name: str
    url: str
    digest: str
    num_samples: int
    num_classes: int


@dataclass(frozen=True)
class RunDescription:
    """What MLflow is told about a run. `run_key` names the run across restarts: the same key continues the same run."""

    uri: str
    experiment: str
    run_name: str
    run_key: str
    job: Mapping[str, Any]
    """The resolved job as nested mappings."""
    job_yaml: str
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    datasets: Sequence[TrackedDataset] = ()


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    time_ms: int
    step: int


class Tracker:
    """Sends a run's metrics to MLflow. Made by rank 0 only. `log` may be called from any thread.

    Steps of a metric must rise: a value at or before the last step that the store holds for that metric is a replay
    (after a restart from a checkpoint) and is left out. Metric names are MLflow's: letters, digits and `_ - . : /`
    and spaces.
    """

    def __init__(self, description: RunDescription, *, spool_dir: str | Path, system_seconds: float = 10.0) -> None:
        """Starts the threads and returns at once.

        Args:
            description: the run.
            spool_dir: local folder for the points that the store has not taken yet.
            system_seconds: time between two samples of the machine's CPU, memory, disk, network and GPUs.
        """
        for name, value in _HTTP_SETTINGS.items():
            os.environ.setdefault(name, value)
        self._description = dataclasses.replace(description, uri=resolve_uri(description.uri))
        self._store = _public(self._description.uri)  # as it may stand in a log
        self._system_seconds = system_seconds
        name = hashlib.sha256(description.run_key.encode()).hexdigest()[:16]
        self._queue = SpooledQueue(Path(spool_dir) / f"tracking-{name}.jsonl")
        self._run_id: str | None = None
        self._run_url: str | None = None
        self._status: Status = "FINISHED"
        self._closing = threading.Event()
        self._gave_up = threading.Event()
        self._try_now = threading.Event()
        self._sampler: threading.Thread | None = None
        self._sender = threading.Thread(target=self._send_forever, name="tracking", daemon=True)
        self._sender.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step. Returns at once and never raises: a value that is no number gets a warning."""
        if self._closing.is_set():
            _log.warning("tracking is closed: metrics of step %d were left out", step)
            return
        values: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                values[name] = float(value)
            except (TypeError, ValueError):
                _log.warning("tracking: %s = %r at step %d is no number and was left out", name, value, step)
        self._put(step, values)

    def flush(self, timeout: float) -> bool:
        """Wait until the store holds all that was logged, at most `timeout` seconds. Returns whether it does."""
        deadline = time.monotonic() + timeout
        while not (drained := self._queue.wait_drained(min(1.0, max(0.0, deadline - time.monotonic())))):
            if time.monotonic() >= deadline:
                break
            self._try_now.set()
        return drained

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> bool:
        """Deliver what is left and end the run with `status`. Returns whether that was done within `timeout` seconds.

        What could not be delivered stays in the spool file, and one warning says so.
        """
        if self._closing.is_set():
            return not self._sender.is_alive()
        deadline = time.monotonic() + timeout
        self._status = status
        self._closing.set()
        if self._sampler is not None:
            self._sampler.join(max(0.0, deadline - time.monotonic()))
        self._queue.finish()
        while self._sender.is_alive() and time.monotonic() < deadline:
            self._try_now.set()
            self._sender.join(min(1.0, max(0.0, deadline - time.monotonic())))
        waiting, done = len(self._queue), not self._sender.is_alive()
        self._gave_up.set()
        self._queue.close()
        if not done:
            where = f"wait in {self._queue.path}; the next run of this job delivers them"
            _log.warning("tracking: %s was not reached in time; %d records %s", self._store, waiting, where)
        return done

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store was reached."""
        return self._run_id

    def url_hint(self) -> str:
        """How to see the run: its address on a tracking server, or the command that opens the browser on a database."""
        uri = self._description.uri
        if uri.startswith(("http://", "https://")):
            return _public(self._run_url or uri)
        # By its path, since the reader's shell may not be in this environment.
        program, store = shlex.quote(str(Path(sys.executable).parent / "mlflow")), shlex.quote(self._store)
        return f"{program} server --backend-store-uri {store} --host 127.0.0.1 --port 5000"

    def _put(self, step: int, metrics: Mapping[str, float]) -> None:
        self._queue.put({"time": int(time.time() * 1000), "step": int(step), "metrics": metrics})

    # ---- the sender thread ----

    def _send_forever(self) -> None:
        """Connect, deliver, end the run. After any failure the state of the store is unknown, so connect again."""
        run = None
        failures = 0
        while True:
            try:
                if run is None:
                    from orchestrator.mlflow_run import MlflowRun  # imports mlflow, which takes seconds

                    run = MlflowRun(self._description)
                run.connect()
                self._run_id, self._run_url = run.run_id, run.url
                self._start_sampler(run.started_ms)
                while records := self._queue.peek(RECORDS_AT_ONCE):
                    run.send(_points(records))
                    self._queue.pop(len(records))
                    if failures:
                        _log.warning("tracking: %s is back; nothing was lost", self._store)
                        failures = 0
                run.finish(self._status)
                return
            except Exception as error:  # whatever the store, its driver or the network raise
                if self._gave_up.is_set():
                    return
                failures += 1
                if failures == 1:
                    where = f"training goes on, metrics wait in {self._queue.path}"
                    _log.warning("tracking: %s is away; %s: %s", self._store, where, _one_line(error))
                self._try_now.wait(min(LONGEST_WAIT, 2.0 ** min(failures - 1, 10)))
                self._try_now.clear()

    def _start_sampler(self, started_ms: int) -> None:
        if self._sampler is None and not self._closing.is_set():
            sampler = threading.Thread(
                target=self._sample_system, args=(started_ms,), name="tracking-system", daemon=True
            )
            sampler.start()
            self._sampler = sampler

    def _sample_system(self, started_ms: int) -> None:
        """The sampler thread: the metrics of MLflow's page "System metrics", through the queue like all others.

        MLflow's own monitor thread stops for good when the server is away for a moment; only its collectors are used.
        Their step is the time since the run began in units of the interval, which rises across restarts by itself.
        """
        try:
            from orchestrator.system_metrics import SystemCollector

            collector = SystemCollector()
            while not self._closing.wait(self._system_seconds):
                step = (time.time() * 1000 - started_ms) / (1000 * self._system_seconds)
                self._put(int(step), collector.sample())
        except Exception as error:  # a driver that fails must not cost more than these metrics
            _log.warning("tracking: system metrics ended: %s", _one_line(error))


def resolve_uri(uri: str) -> str:
    """A tracking URI that means the same in every working directory: the path of a SQLite database made absolute."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"


def _points(records: Sequence[Record]) -> list[Point]:
    return [
        Point(name, value, record["time"], record["step"])
        for record in records
        for name, value in record["metrics"].items()
    ]


def _public(uri: str) -> str:
    """The URI without user name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _one_line(error: BaseException) -> str:
    """The error on one line, with the one at its root: a failure of the network arrives wrapped several times."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    said = [f"{type(each).__name__}: {each}".partition("\n")[0][:160] for each in (error, root)]
    return _public(said[0] if root is error else " <- ".join(said))
