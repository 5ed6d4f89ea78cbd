"""The order in which one worker's reads begin."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.loading.ranges import READ_BYTES, Read, plan_reads
from data.order import MASKED, Order
from data.shards.index import Index

FIRST_STEPS = 32  # read in the order of need; by then most stride groups have been needed


@dataclass(frozen=True, eq=False)
class Scheduled:
    """A read, the first step that needs it, the pass of its samples, and whether that step may come at once."""

    step: int
    number: int
    read: Read
    urgent: bool


def schedule(
    index: Index, order: Order, slots: range, first_step: int, last_step: int, longest: int = READ_BYTES
) -> Iterator[Scheduled]:
    """All reads of steps first_step .. last_step-1 in the order in which they are to begin; each id in one of them."""
    waiting: dict[int, np.ndarray] = {}  # by pass: ids of entered blocks that no read has brought yet
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
    """Ids of a step that are in pass `number` over their source."""
    ids = order.slots(step, slots.start, slots.stop)
    return ids[(ids != MASKED) & (order.epochs(step, slots.start, slots.stop) == number)]
