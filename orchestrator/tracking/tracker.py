"""The history of a run in MLflow, written beside training and never in its way.

    log(), attach() ──> SpooledQueue (memory and a file) ──> sender thread ──> MLflow
                            ^
    system sampler ─────────┘

`log` costs microseconds whatever the store does. One thread speaks to MLflow (`tracking/mlflow_run.py`), and imports
it, since that takes seconds. While the store is away that thread tries again, ever less often, and points wait in the
queue, whose file also survives the process: the next tracker of the same run delivers them first. Where the file lies
on one node only, what waits is copied to the run's folder at each checkpoint (`tracking/spool_copies.py`): what a lost
node had not copied is trained again from there. Points arrive in order, and once each.

Files take the same way: the queue holds their folder's name, and the files are read from the run's folder when MLflow
is there to take them.

What MLflow is told holds no credentials (`redact.py`); its own address may.
"""

import hashlib
import logging
import os
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from data import storage
from orchestrator.redact import redact_text
from orchestrator.tracking.description import RunDescription, redacted
from orchestrator.tracking.spool import Record, SpooledQueue
from orchestrator.tracking.spool_copies import SpoolCopies

Status = Literal["FINISHED", "FAILED", "KILLED"]

LONGEST_WAIT = 30.0
"""Seconds between two tries while the store stays away; the first ones come after 1, 2, 4 ..."""

RECORDS_AT_ONCE = 256
"""`log` calls delivered together."""

DRAIN_SECONDS = 5.0
"""Seconds in which a store that is there takes what waits."""

COPY_SECONDS = 20.0
"""Longest that the end waits for the last copy of what waits."""

INT64_LIMIT = 2**63
"""Steps and times are below."""

_SETTINGS = {
    # Every failure comes back here at once, where the queue is; MLflow would retry for minutes and hold the thread.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
}

_FOLDER = re.compile(r"[\w-]+(/[\w-]+)*")

_log = logging.getLogger(__name__)


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

    def __init__(
        self,
        description: RunDescription,
        *,
        spool_dir: str | Path,
        folder: str = "",
        copy_to: str | None = None,
        system_seconds: float | None = 10.0,
    ) -> None:
        """Starts the threads and returns at once.

        Args:
            description: the run.
            spool_dir: local folder for the points that the store has not taken yet.
            folder: URL of the run's folder, for `attach`.
            copy_to: URL of a folder that other nodes see, where `spool_dir` is none.
            system_seconds: time between two samples of the machine's CPU, memory, disk, network and GPUs. None: none.
        """
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        self._description = redacted(description)
        self._store = redact_text(self._description.uri)  # as it may stand in a log
        self._folder, self._system_seconds = folder, system_seconds
        name = f"tracking-{hashlib.sha256(description.run_key.encode()).hexdigest()[:16]}"
        self._copies = None if copy_to is None else SpoolCopies(copy_to, name)
        self._queue = SpooledQueue(Path(spool_dir) / f"{name}.jsonl", self._load_copies)
        self._run_id: str | None = None
        self._run_url: str | None = None
        self._status: Status = "FINISHED"
        self._closing = threading.Event()
        self._gave_up = threading.Event()
        self._try_now = threading.Event()
        self._copy_now = threading.Event()
        self._copier: threading.Thread | None = None
        if self._copies is not None:
            self._copier = threading.Thread(
                target=self._copy_forever, args=(self._copies,), name="tracking-copies", daemon=True
            )
            self._copier.start()
        self._sampler: threading.Thread | None = None
        self._sender = threading.Thread(target=self._send_forever, name="tracking", daemon=True)
        self._sender.start()

    @classmethod
    def beside(cls, description: RunDescription, run_url: str, *, system_seconds: float | None = 10.0) -> Self:
        """The tracker of the run in the folder `run_url`. Its spool lies there, or where that is a bucket, in the
        temporary folder of this node with copies in the bucket."""
        if storage.is_local(run_url):
            _, path = storage.resolve(run_url)
            return cls(description, spool_dir=path, folder=run_url, system_seconds=system_seconds)
        here = Path(tempfile.gettempdir()) / f"vit-tracking-{os.getuid()}"
        return cls(description, spool_dir=here, folder=run_url, copy_to=run_url, system_seconds=system_seconds)

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

    def attach(self, path: str) -> None:
        """Store the files of a folder inside the run's, at `path` relative to it, under the same path. Returns at once.

        They must stay as they are until then. What the artifact store does not take in a few tries is left out, with a
        warning.
        """
        if self._closing.is_set():
            _log.warning("tracking is closed: %s was left out", path)
            return
        self._queue.put({"time": int(time.time() * 1000), "files": path})

    def copy_waiting(self) -> None:
        """Call at each checkpoint. What waits before it is copied to where other nodes see it. Returns at once."""
        self._copy_now.set()

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
        self._copy_now.set()
        if self._copier is not None:
            self._copier.join(COPY_SECONDS)
        if not done:
            where = f"wait in {self._queue.path}; the same job, run again, delivers them"
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
            return redact_text(self._run_url or uri)
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
                    from orchestrator.tracking.mlflow_run import MlflowRun  # imports mlflow, which takes seconds

                    run = MlflowRun(self._description)
                run.connect()
                self._run_id, self._run_url = run.run_id, run.url
                self._start_sampler(run.started_ms)
                while records := self._queue.peek(RECORDS_AT_ONCE):
                    run.send(_points(records))
                    for path in _attached(records):
                        run.attach(f"{self._folder}/{path}", path)
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
        if self._sampler is None and self._system_seconds is not None and not self._closing.is_set():
            sampler = threading.Thread(
                target=self._sample_system,
                args=(started_ms, self._system_seconds),
                name="tracking-system",
                daemon=True,
            )
            sampler.start()
            self._sampler = sampler

    def _sample_system(self, started_ms: int, seconds: float) -> None:
        """The sampler thread: the metrics of MLflow's page "System metrics", through the queue like all others.

        MLflow's own monitor thread stops for good when the server is away for a moment; only its collectors are used.
        Their step is the time since the run began in units of the interval, which rises across restarts by itself.
        """
        try:
            from orchestrator.tracking.system_metrics import SystemCollector

            collector = SystemCollector()
            while not self._closing.wait(seconds):
                step = (time.time() * 1000 - started_ms) / (1000 * seconds)
                self._put(int(step), collector.sample())
        except Exception as error:  # a driver that fails must not cost more than these metrics
            _log.warning("tracking: system metrics ended: %s", _one_line(error))

    # ---- the copies: loaded by the spool's writer thread, then the copier thread's ----

    def _load_copies(self) -> list[Record]:
        try:
            return [] if self._copies is None else self._copies.load()
        except Exception as error:  # whatever a file system raises
            _log.warning("tracking: what waits beside the run cannot be read: %s", _one_line(error))
            return []

    def _copy_forever(self, copies: SpoolCopies) -> None:
        """At each call, and at the end: copy what the store has not taken, or remove the copies of what it has."""
        self._queue.wait_loaded()
        while True:
            self._copy_now.wait()
            self._copy_now.clear()
            ending = self._gave_up.is_set()
            try:
                if self._queue.wait_drained(0.0 if ending else DRAIN_SECONDS):
                    copies.remove()
                else:
                    copies.add(self._queue)
            except Exception as error:  # whatever a file system raises; what waits is still in the spool
                _log.warning("tracking: what waits was not copied to the run's folder: %s", _one_line(error))
            if ending:
                return


def _points(records: Sequence[Record]) -> list[Point]:
    """The points of what was spooled. It comes from a file, so what makes no sense is left out with a warning."""
    points = []
    for record in records:
        if "files" in record:
            continue
        try:
            time_ms, step = int(record["time"]), int(record["step"])
            if not (0 <= time_ms < INT64_LIMIT and abs(step) < INT64_LIMIT):
                raise ValueError("a time or a step that MLflow cannot hold")
            points += [Point(str(name), float(value), time_ms, step) for name, value in record["metrics"].items()]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            _log.warning("tracking: a spooled record is no point and was left out: %s", _one_line(error))
    return points


def _attached(records: Sequence[Record]) -> list[str]:
    """The folders to store, each once. The file that they come from must not lead out of the run's folder."""
    found: dict[str, None] = {}
    for record in records:
        if "files" in record:
            if isinstance(record["files"], str) and _FOLDER.fullmatch(record["files"]):
                found[record["files"]] = None
            else:
                _log.warning("tracking: a spooled record is no folder of the run and was left out")
    return list(found)


def _one_line(error: BaseException) -> str:
    """The error on one line, with the one at its root: a failure of the network arrives wrapped several times."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    said = [f"{type(each).__name__}: {each}".partition("\n")[0][:160] for each in (error, root)]
    return redact_text(said[0] if root is error else " <- ".join(said))
