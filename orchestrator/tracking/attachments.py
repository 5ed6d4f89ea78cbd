"""Files that wait in a run's queue until MLflow's artifact store takes them.

An artifact store may be away, full or closed while MLflow itself takes points. So a record that names files is set
aside in the queue, where it is not in the way of points, and is tried again at growing intervals. It stays in the
queue's file, so the run's next tracker delivers what this one could not.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from data import storage
from orchestrator.tracking.points import folder_of, one_line, texts_of
from orchestrator.tracking.spool import STRANGE, Record, SpooledQueue

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_run import MlflowRun

LONGEST_WAIT = 30.0
"""Seconds between two tries; the first ones come after 1, 2, 4 ..."""

LAST_TRIES = 3
"""Tries when the run ends. What the store does not take then waits for the run's next tracker."""

_log = logging.getLogger(__name__)


class Attachments:
    """The files of one queue. The sender's thread alone calls its methods.

    Args:
        queue: holds the records, which its consumer has set aside.
        folder: URL of the run's folder, to which paths of files are relative.
        say: receives a line if the artifact store does not take a file, and if it took all of them later.

    Attributes:
        trouble: what the artifact store did not take at the last try, and why, in one line; empty if nothing.
    """

    def __init__(self, queue: SpooledQueue, folder: str, say: Callable[[str], None]) -> None:
        self._queue = queue
        self._folder = folder
        self._say = say
        self._failures = 0
        self._due = 0.0
        self.trouble = ""

    def seconds(self) -> float | None:
        """Seconds to the next try; None if no file waits."""
        return max(0.0, self._due - time.monotonic()) if self._queue.aside() else None

    def store(self, run: "MlflowRun", *, now: bool = False) -> bool:
        """Store what waits, if it is time for a try. Returns whether nothing is left."""
        waiting = self._queue.aside()
        if waiting and (now or time.monotonic() >= self._due):
            for position, record in waiting.items():
                if not self._store(run, record):
                    return False
                self._queue.discard(position)
            if self._failures:
                self._say("MLflow's artifact store is back; the run's files are stored")
                self._failures, self.trouble = 0, ""
        return not self._queue.aside()

    def finish(self, run: "MlflowRun", gave_up: threading.Event) -> None:
        """Try what is left a few times more, until `gave_up` is set."""
        for attempt in range(LAST_TRIES):
            if (attempt and gave_up.wait(2.0 ** (attempt - 1))) or self.store(run, now=True):
                return

    def _store(self, run: "MlflowRun", record: Record) -> bool:
        """Store the files of a record. Returns whether it is done with."""
        try:
            texts, path = texts_of(record), folder_of(record)
        except STRANGE as error:
            _log.warning("tracking: a queued record of files is not valid and was left out: %s", one_line(error))
            return True
        try:
            if texts:
                run.store_texts(path, texts)
            else:
                if not storage.contents(f"{self._folder}/{path}"):
                    _log.warning("tracking: %s were not stored with the run: they are gone", path)
                    return True
                run.store_folder(f"{self._folder}/{path}", path)
        except Exception as error:  # of any artifact store
            self._failures += 1
            self._due = time.monotonic() + min(LONGEST_WAIT, 2.0 ** min(self._failures - 1, 10))
            self.trouble = f"MLflow's artifact store does not take {', '.join(texts) or path} ({one_line(error)})"
            if self._failures == 1:
                self._say(f"{self.trouble}; retrying beside training")
            return False
        return True
