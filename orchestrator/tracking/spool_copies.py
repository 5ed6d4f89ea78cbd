"""Copies of a spool in a run's folder that is in a bucket: they outlive the node that the spool lies on.

    {run}/tracking-1f2e3d4c5b6a7980.000003-9c2f.jsonl    records that MLflow had not taken when this was written

Copying adds a file with the records since the last one, so that long outages cost no more than short ones. The next
tracker of the run, on whatever node, takes the copies over and removes them once their records were delivered.
"""

import secrets

from data import storage
from orchestrator.tracking.spool import Record, SpooledQueue, format_records, parse_records


class SpoolCopies:
    """The copies of the spool `name` in the folder `url`. Call `load` first; `add` and `remove` from one thread."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._found: list[str] = []
        self._position = 0  # in the queue: what was before it has been copied

    def load(self) -> list[Record]:
        """The records of all copies, oldest first. Raises what the file system raises."""
        self._found = storage.matching(self._url, f"{self._name}.*.jsonl")
        records = []
        for name in self._found:
            url = f"{self._url}/{name}"
            records += parse_records(storage.read(url), url)
        self._position = len(records)
        return records

    def add(self, queue: SpooledQueue) -> None:
        """Copy what came since the last copy and was not delivered. Raises what the file system raises."""
        records, position = queue.since(self._position)
        if not records:
            return
        number = 1 + max((_number(name) for name in self._found), default=0)
        name = f"{self._name}.{number:06d}-{secrets.token_hex(2)}.jsonl"
        storage.write_atomic(f"{self._url}/{name}", format_records(records))
        self._found.append(name)
        self._position = position

    def remove(self) -> None:
        """Remove the copies that were loaded or added: their records were delivered."""
        while self._found:
            storage.remove(f"{self._url}/{self._found[-1]}")
            self._found.pop()


def _number(name: str) -> int:
    digits = name.split(".")[-2].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
