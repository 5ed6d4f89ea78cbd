"""Several data sets in one run, each with a fixed share of every batch.

    slots of every batch    | source 0: B_0 slots | source 1: B_1 slots | ... |

Each source has a `SampleOrder` of its own, with batch size B_s, over its own slots. So it has its own lanes, blocks and
passes: a small source with a large share starts its second pass while others are in their first. Within each pass every
sample of the source comes exactly once. The last batch of a pass has masked slots, only among that source's own. Step t
is a pure function of (seed, t) for any number of workers.

Sample ids are those of the sources' indexes joined end to end (`index.concatenate`).
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from data.errors import DataError
from data.order.protocol import MASKED, Order


class Mixture:
    """The order of several sources. `Order` describes the methods.

    An epoch has ceil(samples of all sources / B) steps: as many images as the sources hold together. In it some samples
    come more than once and others never, unless the shares are proportional to the sources' sizes.

    Args:
        parts: (order, first id) of each source. The order's batch size is the source's number of slots; the first id is
            its place in the joined index.

    Raises:
        DataError: no sources.
    """

    def __init__(self, parts: Sequence[tuple[Order, int]]) -> None:
        if not parts:
            raise DataError("a mixture needs at least one source")
        self.batch_size = sum(order.batch_size for order, _ in parts)
        self.num_samples = sum(order.num_samples for order, _ in parts)
        self.steps_per_epoch = -(-self.num_samples // self.batch_size)
        self._parts = tuple(parts)

    @property
    def masked_share(self) -> float:
        return sum(order.masked_share * order.batch_size for order, _ in self._parts) / self.batch_size

    def epoch(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return step // self.steps_per_epoch

    def epochs(self, step: int, start: int, stop: int) -> np.ndarray:
        found = [order.epochs(step, low, high) for order, _, low, high in self._own(start, stop)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def batch(self, step: int) -> list[int]:
        ids: list[int] = self.slots(step, 0, self.batch_size).tolist()
        return ids

    def slots(self, step: int, start: int, stop: int) -> np.ndarray:
        found = [np.empty(0, np.int64)]
        for order, first_id, low, high in self._own(start, stop):
            ids = order.slots(step, low, high)
            found.append(np.where(ids == MASKED, MASKED, ids + first_id))
        return np.concatenate(found)

    def blocks_entered(
        self, step: int, start: int, stop: int, since: int = 0, until: int | None = None
    ) -> list[tuple[int, np.ndarray]]:
        return [
            (number, ids + first_id)
            for order, first_id, low, high in self._own(start, stop)
            for number, ids in order.blocks_entered(step, low, high, since, until)
        ]

    def most_waiting(self, start: int, stop: int) -> int:
        return sum(order.most_waiting(low, high) for order, _, low, high in self._own(start, stop))

    def _own(self, start: int, stop: int) -> Iterator[tuple[Order, int, int, int]]:
        """Sources that slots start .. stop-1 fall in: (order, first id, first, last + 1 of the source's own slots)."""
        if not 0 <= start <= stop <= self.batch_size:
            raise ValueError(f"slots {start} to {stop} of a batch of {self.batch_size}")
        begin = 0
        for order, first_id in self._parts:
            low, high = max(start - begin, 0), min(stop - begin, order.batch_size)
            if low < high:
                yield order, first_id, low, high
            begin += order.batch_size


def shares(weights: Sequence[float], batch_size: int) -> list[int]:
    """Slots of each source in a batch, in proportion to the weights, by largest remainder: they add up to `batch_size`.

    Each source gets its proportion rounded down. The remaining slots go, one each, to the sources that lost most by the
    rounding; of equal ones the earlier comes first. The arithmetic is exact, in fractions of the decimal numbers.

    Raises:
        DataError: weights that cannot be shares, or a positive weight that gets no slot.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise DataError(f"weights {list(weights)}: choose numbers of at least 0, not all of them 0")
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    quotas = [weight * batch_size / total for weight in exact]
    slots = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda source: slots[source] - quotas[source])
    for source in by_remainder[: batch_size - sum(slots)]:
        slots[source] += 1
    for source, weight in enumerate(exact):
        if weight and not slots[source]:
            raise DataError(
                f"source {source + 1} of {len(weights)}: weight {weights[source]:g} makes no slot of {batch_size}; "
                f"a batch of {math.ceil(total / weight)} gives it one"
            )
    return slots
