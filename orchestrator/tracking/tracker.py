"""The history of a run in MLflow, written beside training and never in its way.

    log(), attach() ──> SpooledQueue (memory and a file) ──> sender thread ──> MLflow
                            ^
    system sampler ─────────┘

`log` takes microseconds, whatever the store does. One thread speaks to MLflow (`tracking/mlflow_run.py`), and imports
it, since that takes seconds of CPU; it begins after the first training step, which would be slower beside it. While the
store cannot be reached, that thread tries again at growing intervals, and points wait in the queue. The queue's file
also survives the process: the run's next tracker delivers them first. If the file is on one node only, the queue is
copied to the run's folder at each checkpoint (`tracking/spool_copies.py`); what a lost node had not copied is trained
again from there. Points arrive in order, and once each.

Files take the same way: the queue holds their folder's name, and they are read from the run's folder once MLflow can be
reached. If its artifact store does not take them, they wait beside the points (`tracking/attachments.py`).

Nothing in MLflow holds credentials (`redact.py`); its own address may.
"""

import hashlib
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from data import storage
from orchestrator.redact import redact_text
from orchestrator.tracking.attachments import Attachments
from orchestrator.tracking.description import RunDescription, redacted
from orchestrator.tracking.points import Status, check_record, is_of_files, one_line, points_of
from orchestrator.tracking.refusal import refusal
from orchestrator.tracking.spool import SpooledQueue
from orchestrator.tracking.spool_copies import Copier, SpoolCopies

LONGEST_WAIT = 30.0
"""Seconds between two tries while the store cannot be reached; the first ones come after 1, 2, 4 ..."""

RECORDS_AT_ONCE = 256
"""`log` calls delivered together."""

REFUSES = "MLflow refuses the run"

COPY_SECONDS = 20.0
"""How long the end waits for the last copy of the queue."""

_SETTINGS = {
    # Every failure comes back here at once, where the queue is; MLflow would retry for minutes and hold the thread.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
}

_log = logging.getLogger(__name__)


class Tracker:
    """Sends a run's metrics to MLflow. Only rank 0 makes one. `log` may be called from any thread.

    Steps of a metric must rise: a value at or before the last step that the store holds for that metric is a replay
    (after a restart from a checkpoint) and is left out. Metric names are MLflow's: letters, digits and `_ - . : /`
    and spaces.

    Construction starts the sender and returns at once. It connects when `begin` is called, or after `begin_seconds`.

    Args:
        description: the run.
        spool_dir: local folder for the points that the store has not taken yet.
        folder: URL of the run's folder, for `attach`.
        copy_to: URL of a folder that other nodes see; None if `spool_dir` is one.
        system_seconds: time between two samples of the machine's CPU, memory, disk, network and GPUs. None: no samples.
        begin_seconds: the longest time that the sender waits for `begin`.
        say: receives a line if MLflow cannot be reached, refuses the run, or is back. Default: a warning in the log.

    Attributes:
        trouble: why MLflow does not take the run at present, in one line; empty if it does.
    """

    def __init__(
        self,
        description: RunDescription,
        *,
        spool_dir: str | Path,
        folder: str = "",
        copy_to: str | None = None,
        system_seconds: float | None = 10.0,
        begin_seconds: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        self._description = redacted(description)
        self._store = redact_text(self._description.uri)  # as it may stand in a log
        self._system_seconds = system_seconds
        self._begin_seconds = begin_seconds
        self._say = say or _log.warning
        self.trouble = ""

        spool = f"tracking-{hashlib.sha256(description.run_key.encode()).hexdigest()[:16]}"
        copies = None if copy_to is None else SpoolCopies(copy_to, spool, check_record)
        earlier = list if copies is None else copies.load
        self._queue = SpooledQueue(Path(spool_dir) / f"{spool}.jsonl", earlier, check_record)
        self._copier = None if copies is None else Copier(copies, self._queue)
        self._files = Attachments(self._queue, folder, self._say)

        self._run_id: str | None = None
        self._run_url: str | None = None
        self._status: Status = "FINISHED"
        self._begun = threading.Event()
        self._closing = threading.Event()
        self._gave_up = threading.Event()
        self._try_now = threading.Event()

        self._sampler: threading.Thread | None = None
        self._sender = threading.Thread(target=self._send_forever, name="tracking", daemon=True)
        self._sender.start()

    @classmethod
    def beside(
        cls,
        description: RunDescription,
        run_url: str,
        *,
        system_seconds: float | None = 10.0,
        begin_seconds: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> Self:
        """The tracker of the run in the folder `run_url`.

        Its spool lies in that folder; if the folder is in a bucket, then in the temporary folder of this node, with
        copies in the bucket.
        """
        place = Path(tempfile.gettempdir()) / f"vit-tracking-{os.getuid()}"
        copy_to: str | None = run_url
        if storage.is_local(run_url):
            place = Path(storage.resolve(run_url)[1])
            copy_to = None
        return cls(
            description,
            spool_dir=place,
            folder=run_url,
            copy_to=copy_to,
            system_seconds=system_seconds,
            begin_seconds=begin_seconds,
            say=say,
        )

    def begin(self) -> None:
        """Connect to MLflow from now on. Call it after the first step. Returns at once."""
        self._begun.set()

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
                _log.warning("tracking: %s = %r at step %d is not a number and was left out", name, value, step)
        self._put(step, values)

    def attach(self, path: str) -> None:
        """Store the files of a folder inside the run's, at `path` relative to it, under the same path. Returns at once.

        They must not change until they are stored. Files that are gone by then are left out, with a warning.
        """
        if self._closing.is_set():
            _log.warning("tracking is closed: %s was left out", path)
            return
        self._queue.put({"time": int(time.time() * 1000), "files": path})

    def copy_waiting(self) -> None:
        """Copy the queue to the run's folder, unless the spool is there. Returns at once. Call it at checkpoints."""
        if self._copier is not None:
            self._copier.copy()

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
            return not self._sender.is_alive() and not len(self._queue)
        deadline = time.monotonic() + timeout
        self._status = status
        self._closing.set()
        if self._sampler is not None:
            self._sampler.join(max(0.0, deadline - time.monotonic()))

        self._queue.finish()
        self._begun.set()
        while self._sender.is_alive() and time.monotonic() < deadline:
            self._try_now.set()
            self._sender.join(min(1.0, max(0.0, deadline - time.monotonic())))
        waiting, ended = len(self._queue), not self._sender.is_alive()
        done = ended and not waiting

        self._gave_up.set()
        self._queue.close()
        if self._copier is not None:
            self._copier.finish(COPY_SECONDS)
        if not done:
            where = f"are saved in {self._queue.path}; running the same job again delivers them"
            if ended:
                self.trouble = self._files.trouble
            trouble = self.trouble or f"MLflow at {self._store} did not take everything in time"
            _log.warning("tracking: %s; %d undelivered records %s", trouble, waiting, where)
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
        self._begun.wait(self._begin_seconds)
        run = None
        failures = 0
        while True:
            try:
                if run is None:
                    from orchestrator.tracking.mlflow_run import MlflowRun  # imports mlflow, which takes seconds

                    run = MlflowRun(self._description)
                if run.connect():
                    self._say(f"the run was deleted in MLflow at {self._store}; it continues there as a new run")
                self._run_id, self._run_url = run.run_id, run.url
                self._start_sampler(run.started_ms)
                if (texts := run.take_texts()) is not None:
                    self._queue.put({"time": int(time.time() * 1000), **texts})
                while (records := self._queue.peek(RECORDS_AT_ONCE, self._files.seconds())) != []:
                    if records:
                        run.send(points_of(records))
                        self._queue.pop(len(records), [n for n, record in enumerate(records) if is_of_files(record)])
                    if records and failures:
                        self._say(f"MLflow at {self._store} is back; nothing was lost")
                        failures, self.trouble = 0, ""
                    self._files.store(run)
                run.finish(self._status)
                self._files.finish(run, self._gave_up)
                return
            except Exception as error:  # of the store, its driver or the network
                if self._gave_up.is_set():
                    return
                failures += 1
                before, self.trouble = self.trouble, self._trouble(error)
                if failures == 1 or (self.trouble.startswith(REFUSES) and self.trouble != before):
                    self._say(f"{self.trouble}; training continues, metrics are queued in {self._queue.path}")
                self._try_now.wait(min(LONGEST_WAIT, 2.0 ** min(failures - 1, 10)))
                self._try_now.clear()

    def _trouble(self, error: Exception) -> str:
        uri = self._description.uri
        if reason := refusal(error, uri):
            return f"{REFUSES} at {self._store}: {reason}"
        return f"cannot reach MLflow at {self._store} ({one_line(error)})"

    def _start_sampler(self, started_ms: int) -> None:
        if self._sampler is None and self._system_seconds is not None and not self._closing.is_set():
            arguments = (started_ms, self._system_seconds)
            sampler = threading.Thread(target=self._sample_system, args=arguments, name="tracking-system", daemon=True)
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
            _log.warning("tracking: system metrics ended: %s", one_line(error))
