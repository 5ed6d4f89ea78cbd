"""How much memory one worker's images need, encoded and decoded."""

import bisect
import copy
import math

import numpy as np

from data import storage
from data.errors import DataError
from data.order import MASKED, Order, SampleOrder
from data.shards.index import Index

FETCH_THREADS = 4
LEAST_READ_BYTES = 1 << 20  # READ_BYTES where memory is short
SAMPLE_BYTES = 640  # of Python objects around the fields of a sample that waits, measured
MEASURED_STEPS = 4  # whose samples stand for the mean size


def decoded_bytes(slots: int, image_size: int, prefetch: int) -> int:
    """The decoded batches of a worker: `prefetch` ahead, the one in use and the one being handed over."""
    return (prefetch + 2) * slots * image_size**2 * 3


def needed_bytes(index: Index, order: Order, slots: range, image_size: int, prefetch: int) -> int:
    """The least `memory` that a loader of these slots can be given."""
    return window_bytes(index, order, slots) + decoded_bytes(len(slots), image_size, prefetch)


def window_bytes(index: Index, order: Order, slots: range) -> int:
    """The least memory with which a reader of these slots keeps within it, in bytes.

    The samples that wait at one time, at the mean size of those in the order's first batches, and the shortest reads.
    """
    return math.ceil(order.most_waiting(slots.start, slots.stop) * _mean_bytes(index, order)) + reads_bytes(
        LEAST_READ_BYTES
    )


def _mean_bytes(index: Index, order: Order) -> float:
    """Mean size of the samples, sources as they are mixed: the same for all slots, so that workers agree."""
    steps = range(min(MEASURED_STEPS, order.steps_per_epoch))
    ids = np.concatenate([order.slots(step, 0, order.batch_size) for step in steps])
    shards, counts = np.unique(np.searchsorted(index.starts, ids[ids != MASKED], side="right") - 1, return_counts=True)
    sizes = [index.shards[number].bytes / index.shards[number].samples + SAMPLE_BYTES for number in shards.tolist()]
    return float(np.average(sizes, weights=counts))


def reads_bytes(longest: int) -> int:
    """Memory of all threads' reads, when none is longer."""
    return 2 * FETCH_THREADS * longest


def does_not_fit(index: Index, order: Order, slots: range, needed: int, memory: int) -> DataError:
    mean, for_reads = _mean_bytes(index, order), reads_bytes(LEAST_READ_BYTES)
    block = _largest_block(order, slots, math.floor((memory - for_reads) / mean))
    return DataError(
        f"{storage.parent(index.url)}: samples wait for their step in up to {needed:,} bytes "
        f"({order.most_waiting(slots.start, slots.stop):,} samples of {mean:,.0f} bytes each, and {for_reads:,} for "
        f"reads), more than the {memory:,} allowed: allow more memory"
        + (f", or set data.train.block to at most {block}" if block else "")
    )


def _largest_block(order: Order, slots: range, samples: int) -> int:
    """The largest block with which at most `samples` samples wait; 0 where there is none, or orders are mixed."""
    if not isinstance(order, SampleOrder):
        return 0
    other = copy.copy(order)

    def window(block: int) -> int:
        other.block = block
        return other.most_waiting(slots.start, slots.stop)

    return bisect.bisect_right(range(1, order.block), samples, key=window)
