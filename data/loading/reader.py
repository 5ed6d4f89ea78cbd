"""The bytes of one worker's samples, read ahead of their use.

Shards lie on an object store: a request costs tens of milliseconds whatever it asks for, so samples are never asked for
one by one. When the worker's slots enter new lane blocks (sample_order.py), the ids that it will use from them are laid
over the index's coarse offsets and fetched as few long ranged reads. Samples wait here, as encoded bytes, for the
steps that use them: on average half of each lane's block, plus what is read ahead.

Where a run begins, in mid-epoch or not, all its blocks are new at once. There the reads come in the order of need:
first the stride groups of the first step's samples, then those that the second step adds, and so on. The first batch
waits for a small part of the blocks, and nothing but short gaps is read twice.

Several threads fetch, because one stream of an object store is slower than one worker's decoding, and so that a
request that stalls holds up none but its own samples. They keep to a budget of memory: the bytes that wait, and for
each read under way twice its length (what came, and the samples copied out of it). A read begins if it fits, or if a
step that somebody waits for needs its block: so nothing deadlocks, and the budget must hold the order's window.
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from data import storage
from data.errors import Cause, Unreadable
from data.loading import budget
from data.loading.cache import DOWNLOAD_BYTES, Cache, ChecksumError
from data.loading.ranges import PARSE_TRIES, READ_BYTES, Abandoned, Read, Sample, UnreadableSample, fetch
from data.loading.schedule import Scheduled, schedule
from data.order import Order
from data.shards.index import Index

AHEAD_BYTES = 256 << 20  # beyond the order's window, where nobody says how much memory there is


@dataclass
class Statistics:
    """What a reader has done so far.

    Attributes:
        bytes_read: that came from the store.
        bytes_used: of samples handed over.
        requests: made to the store.
        retries: how many of them repeated one that had failed or brought damaged bytes. What the storage libraries
            repeat by themselves is not seen.
        cache_hits: reads answered by the cache as it was.
        cache_misses: reads that went to the store, or brought their shard into the cache.
        unreadable: shards that were given up, in part or whole.
    """

    bytes_read: int = 0
    bytes_used: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    unreadable: int = 0


class ReaderClosed(Exception):
    """The reader was closed while somebody waited for samples."""


class Reader:
    """Reads the samples of slots start .. stop-1 for steps first_step .. last_step-1, in background threads.

    A context manager: leaving it stops the threads (a request under way is let finish on its own).

    Args:
        memory: bytes for samples that wait and reads under way. Default: what the order's window needs, and 256 MiB.
        cache: of whole shards; those on a local disk already are read where they are. A shard enters when it is
            first read, but the first steps' samples come straight from the store.
        mask_unreadable: samples of a shard that stays unreadable are UnreadableSample; else it is an error.

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
        self._index, self._cache, self._mask_unreadable = index, cache, mask_unreadable
        needed = budget.window_bytes(index, order, slots)
        self._memory = needed + AHEAD_BYTES if memory is None else memory
        free = self._memory - needed
        if free < 0:
            raise budget.does_not_fit(index, order, slots, needed, self._memory)
        # Half of what is free makes the reads longer, the other half is for reading ahead.
        longest = min(READ_BYTES, budget.LEAST_READ_BYTES + free // 2 // budget.reads_bytes(1))
        self._todo = schedule(index, order, slots, first_step, last_step, longest)
        self._planning = threading.Lock()  # for `_todo`; never wanted by who holds the other one
        lock = threading.Lock()  # for all that follows
        self._arrived, self._freed = threading.Condition(lock), threading.Condition(lock)
        self._samples: dict[tuple[int, int], Sample | UnreadableSample] = {}  # by (pass, id)
        self._held = 0  # bytes of the budget in use
        self._asked = first_step - 1
        self._given_up: dict[int, str | None] = {}  # shards found unreadable; the reason where trying again is vain
        self._statistics = Statistics()
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="data-fetch", daemon=True) for _ in range(budget.FETCH_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, step: int, places: Sequence[tuple[int, int]]) -> list[Sample | UnreadableSample]:
        """Wait for the samples of `places`, which belong to `step`, and hand them over. Each can be taken once.

        Args:
            places: (pass, sample id), as the order gives them.

        Raises:
            Unreadable, ...: what stopped the fetching.
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
        """What has been done so far."""
        with self._arrived:
            return dataclasses.replace(self._statistics)

    def close(self) -> None:
        """Stop fetching and wake whoever waits."""
        with self._arrived:
            self._closed = True
            self._samples.clear()
            self._arrived.notify_all()
            self._freed.notify_all()

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
        except BaseException as error:  # whatever it is, it has to reach the thread that waits in take()
            with self._arrived:
                self._error = error
                self._arrived.notify_all()
                self._freed.notify_all()

    def _claim(self) -> tuple[Scheduled, int] | None:
        """The next read to do, once it may be done, and the bytes of the budget that it has taken.

        None when there is none left or the reader is closed.
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
        """Memory that a read takes while it is under way."""
        read = scheduled.read
        cache = None if scheduled.urgent else self._cache_for(read)
        shard = self._index.shards[read.shard]
        downloads = cache is not None and cache.takes(shard) and not cache.holds(shard)
        return 2 * (read.end - read.begin) + (DOWNLOAD_BYTES if downloads else 0)

    def _deliver(self, number: int, samples: dict[int, Sample | UnreadableSample], cost: int) -> None:
        """Hand the samples of a read, all of one pass, to whoever waits for them."""
        with self._arrived:
            self._held -= cost
            if not self._closed:
                self._held += sum(map(_held_bytes, samples.values()))
                self._samples.update({(number, sample_id): sample for sample_id, sample in samples.items()})
            self._arrived.notify_all()
            self._freed.notify_all()

    def _fetch(self, scheduled: Scheduled) -> dict[int, Sample | UnreadableSample]:
        """What became of a read's samples.

        A shard that was unreadable before gets one try a read, as the network may be back; none if its content is
        wrong.

        Raises:
            Unreadable: unless unreadable samples are to be masked.
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
                vain = reason is not None or isinstance(error.__cause__, ChecksumError)
                self._given_up[read.shard] = str(error) if vain else None
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
                cache.drop(shard)  # its checksum held when it entered, but the disk may have changed it since
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
        """The cache, unless the shard lies on a disk of this machine anyway."""
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
            Abandoned: the reader is closed. So nothing is requested any more, or again.
        """
        with self._arrived:
            if self._closed:
                raise Abandoned
            for name, count in events.items():
                setattr(self._statistics, name, getattr(self._statistics, name) + count)


def _field_bytes(sample: Sample | UnreadableSample) -> int:
    return sum(map(len, sample.fields.values())) if isinstance(sample, Sample) else 0


def _held_bytes(sample: Sample | UnreadableSample) -> int:
    """Memory of a sample that waits."""
    return _field_bytes(sample) + budget.SAMPLE_BYTES
