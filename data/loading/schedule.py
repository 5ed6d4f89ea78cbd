"""The order in which one worker's reads begin."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.loading.ranges import READ_BYTES, Read, plan_reads
from data.order import MASKED, Order
from data.shards.index import Index

FIRST_STEPS = 32  # steps whose reads come in the order of need; by then most stride groups have been needed


@dataclass(frozen=True, eq=False)
class Scheduled:
    """A read with the first step that needs it and the pass (`number`) of its samples.

    `urgent`: the step is one of the first, so that the read must not wait for a whole shard to enter the cache.
    """

    step: int
    number: int
    read: Read
    urgent: bool


def schedule(
    index: Index, order: Order, slots: range, first_step: int, last_step: int, longest: int = READ_BYTES
) -> Iterator[Scheduled]:
    """All reads of steps first_step .. last_step-1, in the order in which they begin. Each id is in one read."""
    waiting: dict[int, np.ndarray] = {}  # by pass: ids of entered blocks that are in no read yet
    for step in range(first_step, last_step):
        entered = order.blocks_entered(step, slots.start, slots.stop, since=first_step, until=last_step)
        for number, ids in entered:
            waiting[number] = np.union1d(waiting[number], ids) if number in waiting else ids
        first = step - first_step < FIRST_STEPS
        for number in sorted(waiting):
            among = waiting.pop(number)
            ids = np.intersect1d(among, _used(order, slots, step, number)) if first else among
            for read in plan_reads(index, ids, among, longest):
                yield Scheduled(step, number, read, urgent=first)
                if first:
                    among = np.setdiff1d(among, read.wanted, assume_unique=True)
            if first and len(among):
                waiting[number] = among


def _used(order: Order, slots: range, step: int, number: int) -> np.ndarray:
    """Ids of a step that belong to pass `number` over their source."""
    ids = order.slots(step, slots.start, slots.stop)
    return ids[(ids != MASKED) & (order.epochs(step, slots.start, slots.stop) == number)]
