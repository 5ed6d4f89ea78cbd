"""The memory of one worker's images, encoded and decoded."""

import bisect
import copy
import math

import numpy as np

from data import storage
from data.errors import DataError
from data.order import MASKED, Order, SampleOrder
from data.shards.index import Index

FETCH_THREADS = 4
LEAST_READ_BYTES = 1 << 20  # length of a read if memory is short
SAMPLE_BYTES = 640  # Python objects around the fields of a waiting sample, measured
MEASURED_STEPS = 4  # steps over whose samples the mean size is taken


def decoded_bytes(slots: int, image_size: int, prefetch: int) -> int:
    """Bytes of a worker's decoded batches: `prefetch` ahead, the one in use and the one that is handed over."""
    return (prefetch + 2) * slots * image_size**2 * 3


def needed_bytes(index: Index, order: Order, slots: range, image_size: int, prefetch: int) -> int:
    """The least `memory` with which a loader of these slots works, in bytes."""
    return window_bytes(index, order, slots) + decoded_bytes(len(slots), image_size, prefetch)


def window_bytes(index: Index, order: Order, slots: range) -> int:
    """The least memory with which a reader of these slots works, in bytes.

    It is that of the samples that wait at one time, at the mean size of those in the order's first batches, and of the
    shortest reads.
    """
    waiting = order.most_waiting(slots.start, slots.stop)
    return math.ceil(waiting * _mean_bytes(index, order)) + reads_bytes(LEAST_READ_BYTES)


def _mean_bytes(index: Index, order: Order) -> float:
    """Mean size of the samples, over the sources in their shares. It is the same for all slots, so workers agree."""
    steps = range(min(MEASURED_STEPS, order.steps_per_epoch))
    ids = np.concatenate([order.slots(step, 0, order.batch_size) for step in steps])
    shards, counts = np.unique(np.searchsorted(index.starts, ids[ids != MASKED], side="right") - 1, return_counts=True)
    sizes = [index.shards[number].bytes / index.shards[number].samples + SAMPLE_BYTES for number in shards.tolist()]
    return float(np.average(sizes, weights=counts))


def reads_bytes(longest: int) -> int:
    """Memory of all threads' reads, if none is longer than `longest`."""
    return 2 * FETCH_THREADS * longest


def does_not_fit(index: Index, order: Order, slots: range, needed: int, memory: int) -> DataError:
    """The error of a `memory` below the `needed` bytes. It names the largest block that fits."""
    mean, for_reads = _mean_bytes(index, order), reads_bytes(LEAST_READ_BYTES)
    block = _largest_block(order, slots, math.floor((memory - for_reads) / mean))
    return DataError(
        f"{storage.parent(index.url)}: samples wait for their step in up to {needed:,} bytes "
        f"({order.most_waiting(slots.start, slots.stop):,} samples of {mean:,.0f} bytes each, and {for_reads:,} for "
        f"reads), more than the {memory:,} allowed: allow more memory"
        + (f", or set data.train.block to at most {block}" if block else "")
    )


def _largest_block(order: Order, slots: range, samples: int) -> int:
    """The largest block with which at most `samples` samples wait; 0 if there is none, or if orders are mixed."""
    if not isinstance(order, SampleOrder):
        return 0
    other = copy.copy(order)

    def waiting(block: int) -> int:
        other.block = block
        return other.most_waiting(slots.start, slots.stop)

    return bisect.bisect_right(range(1, order.block), samples, key=waiting)
