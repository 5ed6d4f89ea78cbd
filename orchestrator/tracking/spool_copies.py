"""Copies of a spool in the run's folder, for runs in a bucket: they outlive the node that holds the spool.

    {run}/tracking-1f2e3d4c5b6a7980.000003-9c2f.jsonl    records that MLflow had not taken when this was written

Each copy is a file with the records since the previous one, so that long outages cost no more than short ones. The next
tracker of the run, on any node, takes the copies over and removes them once their records are delivered.
"""

import logging
import secrets
import threading

from data import storage
from orchestrator.tracking.points import one_line
from orchestrator.tracking.spool import Check, Record, SpooledQueue, format_records, parse_records

DRAIN_SECONDS = 5.0
"""How long a reachable store may take to drain the queue before the queue is copied."""

_log = logging.getLogger(__name__)


class SpoolCopies:
    """The copies of one spool. Call `load` first; `add` and `remove` from one thread.

    Args:
        url: the run's folder.
        name: of the spool, with which the names of its copies begin.
        check: raises an error for a record that is strange. Such a record is left out.
    """

    def __init__(self, url: str, name: str, check: Check | None = None) -> None:
        self._url = url
        self._name = name
        self._check = check
        self._names: list[str] = []  # of the copies whose records are in the queue
        self._number = 0  # of the last copy
        self._position = 0  # in the queue: what was before it has been copied

    def load(self) -> list[Record]:
        """The records of all copies, oldest first.

        If one cannot be read, there is a warning, no record, and all copies stay for the run's next tracker.
        """
        records = []
        url = self._url
        try:
            names = storage.matching(self._url, f"{self._name}.*.jsonl")
            self._number = max(map(_number, names), default=0)
            for name in names:
                url = f"{self._url}/{name}"
                records += parse_records(storage.read(url), url, self._check)
        except Exception as error:  # of any file system
            _log.warning("tracking: the queue saved with the run cannot be read: %s: %s", url, one_line(error))
            return []
        self._names = names
        self._position = len(records)
        return records

    def add(self, queue: SpooledQueue) -> None:
        """Copy what came since the last copy and was not delivered. Raises what the file system raises."""
        records, position = queue.since(self._position)
        if not records:
            return
        name = f"{self._name}.{self._number + 1:06d}-{secrets.token_hex(2)}.jsonl"
        storage.write_atomic(f"{self._url}/{name}", format_records(records))
        self._names.append(name)
        self._number += 1
        self._position = position

    def remove(self) -> None:
        """Remove the copies that were loaded or added: their records were delivered."""
        while self._names:
            storage.remove(f"{self._url}/{self._names[-1]}")
            self._names.pop()


class Copier:
    """A thread that copies a queue each time it is asked to, and removes the copies once the queue is empty."""

    def __init__(self, copies: SpoolCopies, queue: SpooledQueue) -> None:
        self._copies = copies
        self._queue = queue
        self._asked = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking-copies", daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Copy what waits in the queue now. Returns at once."""
        self._asked.set()

    def finish(self, timeout: float) -> None:
        """Copy what waits, or remove the copies, one last time, within `timeout` seconds."""
        self._ending.set()
        self._asked.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        self._queue.wait_loaded()
        while True:
            self._asked.wait()
            self._asked.clear()
            ending = self._ending.is_set()
            try:
                if self._queue.wait_drained(0.0 if ending else DRAIN_SECONDS):
                    self._copies.remove()
                else:
                    self._copies.add(self._queue)
            except Exception as error:  # of any file system; what waits is still in the spool
                _log.warning("tracking: the queue could not be saved with the run: %s", one_line(error))
            if ending:
                return


def _number(name: str) -> int:
    digits = name.split(".")[-2].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
