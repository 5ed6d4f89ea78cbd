"""Samples that cannot be used: counted by cause, listed in the run's folder; too many of them stop the run.

    {run}/quarantine.jsonl     {"set": "train", "id": 123, "key": "000123", "shard": "gs://...", "cause": "empty image"}

A bad sample comes up once an epoch. The list has it once; the counts are of masked slots since the run began. The limit
applies to the samples since the present epoch's first point of the curves, or since the workers started. All numbers
are sums over ranks, so every rank comes to the same verdict at the same step.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from data import MaskedSample, storage
from orchestrator import names
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.redact import redact_text
from orchestrator.tracking.spool import parse_records

QUARANTINE = "quarantine.jsonl"
FIRST_VERDICT = 10_000  # samples before the limit applies, or the whole set if it is smaller
SAMPLES_NAMED = 5  # new bad samples that the terminal names each time

_log = logging.getLogger(__name__)


class TooManyBadSamples(Exception):
    """More bad samples than `data.max_bad_fraction` allows. The message is one line."""


class Quarantine:
    """Counts on every rank; rank 0 writes the list, while training continues.

    Args:
        run_url: the run's folder.
        limit: `data.max_bad_fraction`.
        set_size: samples of the training set.
    """

    def __init__(self, run_url: str, *, limit: float, set_size: int, device: torch.device) -> None:
        self._url = f"{run_url}/{QUARANTINE}"
        self._limit = limit
        self._device = device
        self._first_verdict = min(set_size, FIRST_VERDICT)
        self._new: list[dict[str, Any]] = []
        self._new_causes: Counter[str] = Counter()
        self._new_seen = 0
        self._epoch = -1
        self._seen = 0  # samples of this epoch, and the bad ones among them
        self._bad = 0
        self.counts: Counter[str] = Counter()
        """Masked training slots of the run by cause, over all ranks, as of the last `collect`."""
        self._listed: dict[tuple[str, int], dict[str, Any]] = {}
        self._unwritten = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="quarantine")
        self._writing: Future[None] | None = None
        self._messages: list[str] = []  # about the list that was read
        if dist.get_rank() == 0:
            entries = read_quarantine(run_url, self._messages.append)
            self._listed = {(entry["set"], entry["id"]): entry for entry in entries}

    def close(self) -> None:
        """Wait until the list is written."""
        self._writer.shutdown(wait=True)
        if self._unwritten or (self._writing is not None and self._writing.exception()):
            try:
                self._write(self._text())
            except Exception as error:  # of any file system; no reason to end a run
                _log.warning("%s could not be written (%s)", self._url, storage.describe(error))

    def resume(self, metrics: dict[str, float]) -> None:
        """Go on counting from a checkpoint's metrics."""
        self.counts = Counter({cause: int(metrics.get(names.bad_samples(cause), 0)) for cause in names.CAUSES})

    def add(self, bad: Iterable[MaskedSample], slots: int) -> None:
        """Note the bad samples among this rank's `slots` used slots of a training step."""
        self._new_seen += slots
        for sample in bad:
            self._new_causes[sample.cause] += 1
            self._new.append(_entry("train", sample))

    def add_held_out(self, name: str, bad: Iterable[MaskedSample]) -> None:
        """List bad samples of a held-out set. They do not count against the limit."""
        self._new += [_entry(name, sample) for sample in bad]

    def collect(self, epoch: int) -> list[str]:
        """Sum up over all ranks what was added since the last time. Collective.

        Args:
            epoch: of the latest training step.

        Returns:
            On rank 0: lines for the terminal.
        """
        local = [self._new_seen, *(self._new_causes[cause] for cause in names.CAUSES), len(self._new)]
        seen, *causes, entries = all_reduce_sums([torch.tensor(float(n), device=self._device) for n in local])
        self.counts.update({cause: round(count) for cause, count in zip(names.CAUSES, causes, strict=True)})
        self._new_seen, self._new_causes = 0, Counter()
        messages, self._messages = self._messages, []
        messages += self._list(self._gather()) if entries else []
        messages += self._start_writing()
        if epoch != self._epoch:
            self._epoch, self._seen, self._bad = epoch, 0, 0
        self._seen += round(seen)
        self._bad += round(sum(causes))
        return messages

    def check(self) -> None:
        """Apply the limit to what was collected.

        Raises:
            TooManyBadSamples: on all ranks.
        """
        if self._bad > self._limit * max(self._seen, self._first_verdict):
            raise TooManyBadSamples(self._verdict())

    def metrics(self) -> dict[str, float]:
        """The counts under the names that MLflow shows: in all, and of each cause that occurred."""
        by_cause = {names.bad_samples(cause): float(count) for cause, count in self.counts.items() if count}
        return {names.BAD_SAMPLES: float(self.counts.total()), **by_cause}

    def _gather(self) -> list[dict[str, Any]]:
        lists: list[list[dict[str, Any]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(lists, self._new)
        self._new = []
        return [entry for entries in lists for entry in entries]

    def _list(self, entries: list[dict[str, Any]]) -> list[str]:
        if dist.get_rank() != 0:
            return []
        unknown = {(entry["set"], entry["id"]): entry for entry in entries}
        unknown = {place: entry for place, entry in unknown.items() if place not in self._listed}
        if not unknown:
            return []
        self._listed |= unknown
        self._unwritten = True
        lines = [
            f"masked {e['key'] or 'a sample'} of {e['shard']}: {e['cause']}"
            for e in list(unknown.values())[:SAMPLES_NAMED]
        ]
        more = len(unknown) - SAMPLES_NAMED
        return [*lines, f"and {more:,} more bad samples, listed in {self._url}"] if more > 0 else lines

    def _start_writing(self) -> list[str]:
        """Write the list if it has changed, one write at a time. After a failure the next call tries again."""
        messages = []
        if self._writing is not None and self._writing.done():
            if error := self._writing.exception():
                messages.append(f"{self._url} could not be written ({type(error).__name__}: {error}); trying again")
                self._unwritten = True
            self._writing = None
        if self._unwritten and self._writing is None:
            self._unwritten = False
            self._writing = self._writer.submit(self._write, self._text())
        return messages

    def _text(self) -> str:
        return "".join(json.dumps(self._listed[place]) + "\n" for place in sorted(self._listed))

    def _write(self, text: str) -> None:
        storage.write_atomic(self._url, text.encode())

    def _verdict(self) -> str:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in self.counts.most_common() if count)
        return (
            f"{self._bad:,} of the last {self._seen:,} samples are bad, more than "
            f"data.max_bad_fraction = {self._limit:g} (in the run: {causes}); they are listed in {self._url}"
        )


def read_quarantine(run_url: str, warn: Callable[[str], None] = _log.warning) -> list[dict[str, Any]]:
    """The bad samples of a run: set, id, key, shard and cause of each; empty if there were none.

    `warn` receives a line if the list, or a line of it, is damaged and left out.

    Raises:
        Exception: the store's error, if it is unreachable.
    """
    url = f"{run_url}/{QUARANTINE}"
    try:
        return parse_records(storage.read(url), url, _check, warn)
    except FileNotFoundError:
        return []
    except Exception as error:  # of any file system
        if storage.is_outage(error, run_url):
            raise
        warn(f"{url}: cannot be read and was left out ({storage.describe(error)})")
        return []


def _check(entry: dict[str, Any]) -> None:
    number = entry["id"]
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("no sample id")
    if not all(isinstance(entry[name], str) for name in ("set", "key", "shard", "cause")):
        raise ValueError("no entry of this list")


def _entry(name: str, sample: MaskedSample) -> dict[str, Any]:
    return {
        "set": name,
        "id": sample.sample_id,
        "key": sample.key,
        "shard": redact_text(sample.shard),
        "cause": sample.cause,
    }
