"""The bytes of one worker's samples, read ahead of their use.

A request to an object store takes tens of milliseconds at any length, so samples are not requested one by one. When the
worker's slots enter new lane blocks (sample_order.py), the ids that it will use from them become a few long ranged
reads, between the index's coarse offsets. Samples wait here, as encoded bytes, for their steps: on average half of each
lane's block, and those that are read ahead.

At the start of a run, also in mid-epoch, all its blocks are new at once. Then reads come in the order of need: first
the stride groups of the first step's samples, then those that the second step adds, and so on (schedule.py). The first
batch waits for a small part of the blocks, and only short gaps are read twice.

Several threads fetch: one stream of an object store is slower than one worker's decoding, and a request that stalls
delays its own samples alone. They share a budget of memory (budget.py): the waiting bytes, and for each running read
twice its length, for its bytes and the samples copied from them. A read begins if it fits into the budget, or if a step
that is asked for needs its block. So there is no deadlock, and the budget must hold the order's window.
"""

import atexit
import dataclasses
import functools
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from data import bounds, storage
from data.errors import Cause, Unreadable
from data.loading import budget
from data.loading.cache import DOWNLOAD_BYTES, Cache, ChecksumError
from data.loading.ranges import PARSE_TRIES, READ_BYTES, Abandoned, Read, Sample, UnreadableSample, fetch
from data.loading.schedule import Scheduled, schedule
from data.order import Order
from data.shards.index import Index

AHEAD_BYTES = 256 << 20  # beyond the order's window, if the memory is not given
EXIT_SECONDS = 5.0  # that the end of the program waits for fetch threads


@dataclass
class Statistics:
    """Counts of a reader.

    Attributes:
        bytes_read: bytes from the store.
        bytes_used: bytes of the samples that were taken.
        requests: requests to the store.
        retries: requests that repeated one that had failed or had brought damaged bytes. The storage libraries' own
            retries are not counted.
        cache_hits: reads from a shard that was in the cache.
        cache_misses: reads from the store, and those that brought their shard into the cache.
        unreadable: shards that could not be read, in part or whole.
    """

    bytes_read: int = 0
    bytes_used: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    unreadable: int = 0


class ReaderClosed(Exception):
    """The reader was closed while `take` waited for samples."""


class Reader:
    """Reads the samples of slots start .. stop-1 for steps first_step .. last_step-1, in background threads.

    A context manager: leaving it stops the threads. A running request is not waited for.

    Args:
        memory: bytes for waiting samples and running reads. Default: the order's window and 256 MiB.
        cache: of whole shards. Shards on a local disk do not enter it. A shard enters when it is first read, but the
            first steps' samples come directly from the store.
        mask_unreadable: samples of a shard that stays unreadable are `UnreadableSample`; else it is an error.

    Raises:
        DataError: `memory` is less than `window_bytes`.
    """

    def __init__(
        self,
        index: Index,
        order: Order,
        slots: range,
        first_step: int,
        last_step: int,
        *,
        memory: int | None = None,
        cache: Cache | None = None,
        mask_unreadable: bool = False,
    ) -> None:
        self._index = index
        self._cache = cache
        self._mask_unreadable = mask_unreadable

        needed = budget.window_bytes(index, order, slots)
        self._memory = needed + AHEAD_BYTES if memory is None else memory
        free = self._memory - needed
        if free < 0:
            raise budget.does_not_fit(index, order, slots, needed, self._memory)
        # Half of the free bytes makes the reads longer, the other half is for reading ahead.
        longest = min(READ_BYTES, budget.LEAST_READ_BYTES + free // 2 // budget.reads_bytes(1))
        self._todo = schedule(index, order, slots, first_step, last_step, longest)

        self._planning = threading.Lock()  # for `_todo`; taken before the other lock, never after it
        lock = threading.Lock()  # for everything below
        self._arrived, self._freed = threading.Condition(lock), threading.Condition(lock)
        self._samples: dict[tuple[int, int], Sample | UnreadableSample] = {}  # by (pass, id)
        self._held = 0  # bytes of the budget in use
        self._asked = first_step - 1
        self._given_up: dict[int, str | None] = {}  # unreadable shards; the reason, if a retry is pointless
        self._statistics = Statistics()
        self._error: BaseException | None = None
        self._closed = False

        self._threads = [
            threading.Thread(target=self._run, name="data-fetch", daemon=True) for _ in range(budget.FETCH_THREADS)
        ]
        _READERS.add(self)
        for thread in self._threads:
            thread.start()

    def take(self, step: int, places: Sequence[tuple[int, int]]) -> list[Sample | UnreadableSample]:
        """Wait for the samples of `places`, which belong to `step`, and return them. Each can be taken once.

        Args:
            places: pairs (pass, sample id), as the order has them.

        Raises:
            Unreadable, ...: the error that stopped the fetching.
            ReaderClosed: closed while waiting.
        """
        with self._arrived:
            if step > self._asked:
                self._asked = step
                self._freed.notify_all()
            self._arrived.wait_for(
                lambda: self._closed or self._error or all(place in self._samples for place in places)
            )
            if self._error:
                raise self._error
            if self._closed:
                raise ReaderClosed
            taken = [self._samples.pop(place) for place in places]
            self._held -= sum(map(_held_bytes, taken))
            self._statistics.bytes_used += sum(map(_field_bytes, taken))
            self._freed.notify_all()
            return taken

    def statistics(self) -> Statistics:
        """The counts so far."""
        with self._arrived:
            return dataclasses.replace(self._statistics)

    def close(self) -> None:
        """Stop fetching. A `take` that waits raises ReaderClosed."""
        with self._arrived:
            self._closed = True
            self._samples.clear()
            self._arrived.notify_all()
            self._freed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait until the fetch threads of a closed reader have ended, but not longer than `seconds`."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (claimed := self._claim()) is not None:
                scheduled, cost = claimed
                self._deliver(scheduled.number, self._fetch(scheduled), cost)
        except Abandoned:
            pass
        except BaseException as error:  # of any type: it must reach the thread that waits in take()
            with self._arrived:
                self._error = error
                self._arrived.notify_all()
                self._freed.notify_all()

    def _claim(self) -> tuple[Scheduled, int] | None:
        """Wait until the next read may begin. Returns the read and the bytes of the budget that it takes.

        None if there is no read left or the reader is closed.
        """
        with self._planning:
            scheduled = next(self._todo, None)
            if scheduled is None:
                return None
            cost = self._cost(scheduled)
            with self._freed:
                self._freed.wait_for(lambda: self._stopped() or self._may_begin(scheduled, cost))
                if self._stopped():
                    return None
                self._held += cost
            return scheduled, cost

    def _stopped(self) -> bool:
        return self._closed or self._error is not None

    def _may_begin(self, scheduled: Scheduled, cost: int) -> bool:
        return scheduled.step <= self._asked or self._held + cost <= self._memory

    def _cost(self, scheduled: Scheduled) -> int:
        """Memory of a running read."""
        read = scheduled.read
        cache = None if scheduled.urgent else self._cache_for(read)
        shard = self._index.shards[read.shard]
        downloads = cache is not None and cache.takes(shard) and not cache.holds(shard)
        length = min(read.end - read.begin, bounds.SAMPLE_BYTES)  # a longer range is read in pieces
        return 2 * length + (DOWNLOAD_BYTES if downloads else 0)

    def _deliver(self, number: int, samples: dict[int, Sample | UnreadableSample], cost: int) -> None:
        """Put the samples of a read, all of one pass, where `take` finds them."""
        with self._arrived:
            self._held -= cost
            if not self._closed:
                self._held += sum(map(_held_bytes, samples.values()))
                self._samples.update({(number, sample_id): sample for sample_id, sample in samples.items()})
            self._arrived.notify_all()
            self._freed.notify_all()

    def _fetch(self, scheduled: Scheduled) -> dict[int, Sample | UnreadableSample]:
        """The samples of a read, by id.

        A shard that was unreadable before gets one try a read, since the network may be back. It gets none if its
        content is wrong.

        Raises:
            Unreadable: if unreadable samples are not masked.
            Abandoned: the reader is closed.
        """
        read = scheduled.read
        with self._arrived:
            suspect = read.shard in self._given_up
            reason = self._given_up.get(read.shard)
        try:
            if reason is not None:
                raise Unreadable(reason)
            get = functools.partial(self._get, urgent=scheduled.urgent, suspect=suspect)
            return fetch(self._index, read, get, tries=1 if suspect else PARSE_TRIES)
        except Unreadable as error:
            with self._arrived:
                final = reason is not None or isinstance(error.__cause__, ChecksumError)
                self._given_up[read.shard] = str(error) if final else None
                self._statistics.unreadable = len(self._given_up)
            if not self._mask_unreadable:
                raise
            lost = UnreadableSample(self._index.shard_url(read.shard), Cause.UNREADABLE)
            return dict.fromkeys(read.wanted.tolist(), lost)

    def _get(self, read: Read, attempt: int, *, urgent: bool, suspect: bool) -> bytes:
        """The bytes of a read, from the cache or the store."""
        shard = self._index.shards[read.shard]
        cache = self._cache_for(read)
        if attempt > 0:
            self._count(retries=1)
            if cache is not None:
                cache.drop(shard)  # its checksum was right when it entered, but the disk may have damaged it since
        downloaded = False

        def download(begin: int, end: int) -> bytes:
            nonlocal downloaded
            downloaded = True
            return self._from_store(read.shard, begin, end, attempts=1 if suspect else None)

        content = None
        if cache is not None and (not urgent or cache.holds(shard)):
            content = cache.read(shard, read.begin, read.end, download)
        if content is None:
            content = download(read.begin, read.end)
        if cache is not None:
            self._count(**{"cache_misses" if downloaded else "cache_hits": 1})
        return content

    def _cache_for(self, read: Read) -> Cache | None:
        """The cache, or None for a shard on a disk of this machine."""
        return None if storage.is_local(self._index.shard_url(read.shard)) else self._cache

    def _from_store(self, shard: int, begin: int, end: int, attempts: int | None) -> bytes:
        self._count(requests=1)
        content = storage.read_range(
            self._index.shard_url(shard),
            begin,
            end,
            attempts=attempts,
            on_retry=lambda: self._count(requests=1, retries=1),
        )
        self._count(bytes_read=len(content))
        return content

    def _count(self, **events: int) -> None:
        """Add to the statistics.

        Raises:
            Abandoned: the reader is closed. So no request begins any more.
        """
        with self._arrived:
            if self._closed:
                raise Abandoned
            for name, count in events.items():
                setattr(self._statistics, name, getattr(self._statistics, name) + count)


def _field_bytes(sample: Sample | UnreadableSample) -> int:
    return sum(map(len, sample.fields.values())) if isinstance(sample, Sample) else 0


def _held_bytes(sample: Sample | UnreadableSample) -> int:
    """Memory of a waiting sample."""
    return _field_bytes(sample) + budget.SAMPLE_BYTES


_READERS: "weakref.WeakSet[Reader]" = weakref.WeakSet()  # that may have fetch threads


@atexit.register
def _stop_fetching() -> None:
    """End the fetch threads before the interpreter ends, which would abort the program inside numpy's C++ code."""
    readers, deadline = list(_READERS), time.monotonic() + EXIT_SECONDS
    for reader in readers:
        reader.close()
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
