"""The bytes of one worker's samples, read ahead of their use.

Shards lie on an object store: a request costs tens of milliseconds whatever it asks for, so samples are never asked for
one by one. When the worker's slots enter new lane blocks (order.py), the ids that it will use from them are laid
over the index's coarse offsets and fetched as few long ranged reads. Samples wait here, as encoded bytes, for the
steps that use them: on average half of each lane's block, plus what is read ahead.

Several threads fetch, because one stream of an object store is slower than one worker's decoding. They never run
further ahead than `AHEAD_BYTES`, except for what a step that is being waited for needs.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from data import storage, tar
from data.errors import DataError
from data.fields import IMAGE_EXTENSIONS, LABEL_EXTENSIONS
from data.index import Index
from data.order import SampleOrder

FETCH_THREADS = 4
AHEAD_BYTES = 256 << 20
READ_BYTES = 16 << 20  # longer needs are split, so that several threads share them and little waits unparsed
GAP_BYTES = 1 << 20  # an unused stretch shorter than this is read through: cheaper than another request
KEPT_FIELDS = frozenset(IMAGE_EXTENSIONS + LABEL_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded sample: its key in the shard and the bytes of its image and label fields."""

    key: str
    fields: dict[str, bytes]


@dataclass(frozen=True, eq=False)
class Read:
    """One ranged read.

    Attributes:
        shard: number of the shard.
        begin, end: bytes of the shard, from one coarse offset to another.
        first_id: sample id of the first sample in the range.
        count: samples in the range.
        wanted: int64, the ids to keep, ascending.
    """

    shard: int
    begin: int
    end: int
    first_id: int
    count: int
    wanted: np.ndarray


def plan_reads(index: Index, ids: np.ndarray) -> list[Read]:
    """The ranged reads that bring the samples `ids` (int64, ascending), in storage order."""
    reads: list[Read] = []
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    for number in np.unique(shards):
        shard = index.shards[number]
        start = int(index.starts[number])
        wanted = ids[shards == number]
        edges = np.append(shard.offsets, shard.bytes)  # byte range of stride group g: edges[g] .. edges[g+1]
        for first, last in _spans(np.unique((wanted - start) // index.stride), edges):
            low, high = first * index.stride, min(last * index.stride, shard.samples)
            keep = wanted[np.searchsorted(wanted, start + low) : np.searchsorted(wanted, start + high)]
            reads.append(Read(int(number), int(edges[first]), int(edges[last]), start + low, high - low, keep))
    return reads


def _spans(groups: np.ndarray, edges: np.ndarray) -> list[tuple[int, int]]:
    """Join stride groups (ascending) into ranges (first, last + 1): short gaps are read through, long ranges split."""
    spans: list[tuple[int, int]] = []
    for group in groups.tolist():
        if spans:
            first, end = spans[-1]
            if edges[group] - edges[end] <= GAP_BYTES and edges[group + 1] - edges[first] <= READ_BYTES:
                spans[-1] = (first, group + 1)
                continue
        spans.append((group, group + 1))
    return spans


def fetch(index: Index, read: Read) -> dict[int, Sample]:
    """Carry out one read: sample id -> sample, the bytes copied so that the rest of the range is freed.

    Raises:
        DataError: the shard is not what was indexed.
        OSError, or what the file system raises: it cannot be read.
    """
    url = index.shard_url(read.shard)
    try:
        content = storage.read_range(url, read.begin, read.end)
        found = list(tar.samples(tar.members(content)))
    except FileNotFoundError as error:
        raise _not_as_indexed(url, read, "there is no such shard") from error
    except DataError as error:
        raise _not_as_indexed(url, read, str(error)) from error
    if len(found) != read.count:
        raise _not_as_indexed(url, read, f"{len(found)} samples instead of {read.count}")
    samples = {}
    for sample_id in read.wanted.tolist():
        sample = found[sample_id - read.first_id]
        fields = {name: bytes(data) for name, data in sample.fields.items() if name in KEPT_FIELDS}
        samples[sample_id] = Sample(sample.key, fields)
    return samples


def _not_as_indexed(url: str, read: Read, what: str) -> DataError:
    return DataError(
        f"{url}: not what was indexed: {what} in bytes {read.begin} to {read.end}; "
        f"restore the shard, or index again with `python -m data pack --index-only {storage.parent(url)}`"
    )


class ReaderClosed(Exception):
    """The reader was closed while somebody waited for samples."""


class Reader:
    """Reads the samples of slots start .. stop-1 for steps first_step .. last_step-1, in background threads.

    A context manager: leaving it stops the threads (a request under way is let finish on its own).
    """

    def __init__(self, index: Index, order: SampleOrder, slots: range, first_step: int, last_step: int) -> None:
        self._index, self._order = index, order
        self._todo = _scheduled_reads(index, order, slots, first_step, last_step)
        self._next = next(self._todo, None)
        self._changed = threading.Condition()
        self._samples: dict[tuple[int, int], Sample] = {}  # by (epoch, id): read-ahead may hold the next epoch's too
        self._ahead: deque[tuple[int, int]] = deque()  # (step, bytes) of reads begun for steps nobody asked for yet
        self._asked = first_step - 1
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="data-fetch", daemon=True) for _ in range(FETCH_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, step: int, ids: Sequence[int]) -> list[Sample]:
        """Wait for the samples `ids`, which belong to `step`, and hand them over. Each can be taken once.

        Raises:
            DataError, OSError, ...: what stopped the fetching.
            ReaderClosed: closed while waiting.
        """
        epoch = self._order.epoch(step)
        with self._changed:
            if step > self._asked:
                self._asked = step
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._closed or self._error or all((epoch, number) in self._samples for number in ids)
            )
            if self._error:
                raise self._error
            if self._closed:
                raise ReaderClosed
            return [self._samples.pop((epoch, number)) for number in ids]

    def close(self) -> None:
        """Stop fetching and wake whoever waits."""
        with self._changed:
            self._closed = True
            self._samples.clear()
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (scheduled := self._claim()) is not None:
                step, read = scheduled
                epoch = self._order.epoch(step)
                samples = fetch(self._index, read)
                with self._changed:
                    if not self._closed:
                        self._samples.update({(epoch, number): sample for number, sample in samples.items()})
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it has to reach the thread that waits in take()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _claim(self) -> tuple[int, Read] | None:
        """The next read to do, once it may be done; None when there is none left or the reader is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._error or self._next is None or self._may_read())
            if self._closed or self._error or self._next is None:
                return None
            claimed = step, read = self._next
            self._ahead.append((step, read.end - read.begin))
            self._next = next(self._todo, None)
            return claimed

    def _may_read(self) -> bool:
        while self._ahead and self._ahead[0][0] <= self._asked:
            self._ahead.popleft()
        assert self._next is not None
        return self._next[0] <= self._asked or sum(length for _, length in self._ahead) < AHEAD_BYTES


def _scheduled_reads(
    index: Index, order: SampleOrder, slots: range, first_step: int, last_step: int
) -> Iterator[tuple[int, Read]]:
    """(first step that needs it, read), in the order of the steps."""
    for step in range(first_step, last_step):
        ids = order.entered(step, slots.start, slots.stop, since=first_step, until=last_step)
        if len(ids):
            for read in plan_reads(index, ids):
                yield step, read
