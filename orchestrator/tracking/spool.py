"""A first-in first-out queue of JSON records that survives its process and never blocks its producer.

    put() ──> writer thread: appends a line to the file ──> peek(), pop() ──> the file is emptied when nothing is left

A record is on disk before the consumer sees it, and stays there until it was popped. A killed process loses only the
records of its last milliseconds. The file is emptied, never rewritten: after a kill it may still hold records that were
popped, so delivery is at least once, in order. A record that cannot be delivered at present may be set aside: it does
not hold up the others, and the file keeps it. The records survive the process, but not a power cut: nothing calls
`fsync`.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

Record = dict[str, Any]
Check = Callable[[Record], object]

STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # contents of a file

LINES_NAMED = 20  # damaged lines of a file that have a warning each

_log = logging.getLogger(__name__)


class SpooledQueue:
    """One producer, one consumer.

    Args:
        path: the file. Records of an earlier process in it come before those that are put.
        earlier: called by the writer thread, once; the records that it returns come before all others.
        check: raises an error for a record of the file that is strange. Such a record is left out.
    """

    def __init__(self, path: Path, earlier: Callable[[], list[Record]] = list, check: Check | None = None) -> None:
        self.path = path
        self._earlier = earlier
        self._check = check
        self._incoming: SimpleQueue[Record | None] = SimpleQueue()  # to the writer; None wakes the writer
        self._changed = threading.Condition()  # guards the fields below; held for memory operations only
        self._ready: deque[Record] = deque()
        self._outstanding = 0  # records put and not yet popped
        self._popped = 0
        self._aside: dict[int, Record] = {}  # by position
        self._loaded = self._finished = self._closed = False
        self._writer = threading.Thread(target=self._write, name="tracking-spool", daemon=True)
        self._writer.start()

    def put(self, record: Record) -> None:
        """Append a record. Never waits for the disk."""
        with self._changed:
            self._outstanding += 1
        self._incoming.put(record)

    def peek(self, limit: int, timeout: float | None = None) -> list[Record] | None:
        """The oldest records, at most `limit`; they stay.

        Waits for one; returns None after `timeout` seconds. Empty only at the end: after `finish`, if none is left but
        those that were set aside.
        """

        def ended() -> bool:
            return self._finished and self._loaded and self._outstanding == len(self._aside)

        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or ended(), timeout):
                return None
            return [self._ready[i] for i in range(min(limit, len(self._ready)))]

    def pop(self, count: int, aside: Collection[int] = ()) -> None:
        """Remove the `count` oldest records: they have been delivered, but for those at the places `aside`.

        These wait beside the queue, until `discard`.
        """
        with self._changed:
            for place in range(count):
                record = self._ready.popleft()
                if place in aside:
                    self._aside[self._popped + place] = record
            self._popped += count
            self._remove(count - len(aside))

    def aside(self) -> dict[int, Record]:
        """The records that were set aside, by position, oldest first."""
        with self._changed:
            return dict(self._aside)

    def discard(self, position: int) -> None:
        """Remove a record that was set aside: it has been delivered."""
        with self._changed:
            del self._aside[position]
            self._remove(1)

    def _remove(self, count: int) -> None:
        self._outstanding -= count
        self._changed.notify_all()
        if not self._outstanding:
            self._incoming.put(None)

    def since(self, position: int) -> tuple[list[Record], int]:
        """The records from a position on that were not delivered yet, and the position after them.

        Positions count all records that were ever in this queue, including those of earlier processes.
        """
        with self._changed:
            waiting = [record for place, record in self._aside.items() if place >= position]
            waiting += islice(self._ready, max(0, position - self._popped), None)
            return waiting, self._popped + len(self._ready)

    def wait_loaded(self) -> None:
        """Wait until the records of earlier processes are in the queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._loaded)

    def wait_drained(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until every record was popped. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._loaded and not self._outstanding, timeout)

    def __len__(self) -> int:
        """Records put, or left by an earlier process, and not yet popped."""
        with self._changed:
            return self._outstanding

    def finish(self) -> None:
        """The producer's last call: no record follows."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self, timeout: float = 5.0) -> None:
        """Stop the writer once it has written everything. Records that were not popped stay in the file."""
        with self._changed:
            self._closed = True
        self._incoming.put(None)
        self._writer.join(timeout)

    # ---- the writer thread, which alone touches the file ----

    def _write(self) -> None:
        file = self._open()
        while True:
            record = self._incoming.get()
            if record is not None:
                file = self._append(file, record)
                with self._changed:
                    self._ready.append(record)
                    self._changed.notify_all()
                continue
            with self._changed:
                drained, closed = not self._outstanding, self._closed
            if drained:
                file = self._empty(file, remove=closed)
            if closed and self._incoming.empty():
                break
        if file is not None:
            file.close()

    def _open(self) -> BinaryIO | None:
        """Open the file and take over the records of an earlier process."""
        left = self._earlier()
        file = None
        try:
            if self.path.is_symlink():
                raise OSError("a link, which may lead to the file of another program")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
            left += self._load(file)
        except OSError as error:
            self._warn(error)
        with self._changed:
            self._ready.extend(left)
            self._outstanding += len(left)
            self._loaded = True
            self._changed.notify_all()
        return file

    def _load(self, file: BinaryIO) -> list[Record]:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a process killed while it wrote leaves a torn last line
            _log.warning("%s: the last line is torn and was left out", self.path)
            file.truncate(len(whole))
        return parse_records(whole, self.path, self._check)

    def _append(self, file: BinaryIO | None, record: Record) -> BinaryIO | None:
        """Write one line. If the disk fails, continue in memory until the process ends."""
        if file is None:
            return None
        line = format_records([record])
        try:
            if file.write(line) == len(line):
                return file
            raise OSError("the disk is full")
        except OSError as error:
            self._warn(error)
            file.close()
            return None

    def _empty(self, file: BinaryIO | None, remove: bool) -> BinaryIO | None:
        if file is None:
            return None
        try:
            file.truncate(0)
            if remove:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)
        return file

    def _warn(self, error: OSError) -> None:
        _log.warning("%s cannot be written (%s): undelivered metrics are kept in memory only", self.path, error)


def parse_records(
    content: bytes, source: Path | str, check: Check | None = None, warn: Callable[[str], None] = _log.warning
) -> list[Record]:
    """The records in whole lines. A line that holds no record is left out with a warning.

    Args:
        source: the file, for the warning.
        check: raises an error for a record that is strange.
        warn: receives the warnings, at most LINES_NAMED and one.
    """
    records: list[Record] = []
    damaged: list[int] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no JSON object")
            if check is not None:
                check(record)
            records.append(record)
        except STRANGE:
            damaged.append(number)
    for number in damaged[:LINES_NAMED]:
        warn(f"{source}: line {number} is damaged and was left out")
    if len(damaged) > LINES_NAMED:
        warn(f"{source}: {len(damaged) - LINES_NAMED:,} more lines are damaged; what is in them was left out")
    return records


def format_records(records: Iterable[Record]) -> bytes:
    """One line a record."""
    return b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
