"""Which samples make up step t: pure arithmetic on (seed, t), the same for any number of workers.

    shards of the epoch, permuted    | 7 | 0 | 3 |  5  | 1 |  6  | 2 | 4 |
    one line, cut into C lanes       |-------|-------|-------|-------|         in proportion to their slots
    each lane shuffled in blocks     |--|--|-|-|--|--|--|--|-|-|--|--|         of K samples
    step t                              ^       ^       ^       ^              about B/C samples from each lane

Lane l fills slots s_l .. s_(l+1)-1 of a batch of B, s_l = floor(l B / C), and has places floor(N s_l / B) ..
floor(N s_(l+1) / B) - 1 of the line of N samples. So every lane fills the first floor(N / B) batches of an epoch, and
an epoch has ceil(N / B) steps: every sample comes exactly once, and the missing slots of the last batch are masked
(-1). A rank reads the lanes of its slots, block after block: long sequential reads.

Blocks of different lanes are staggered: lane l's first block is shorter by K times the fraction whose binary digits are
those of l in reverse order (van der Corput). So the lanes enter their next blocks one after another, and so do the few
neighbouring lanes of one worker. The reads are spread over the steps, instead of all coming every K*C/B steps.

How well this shuffles:

- A batch draws from C places of the set, each shuffled over K samples: from a window of C x K samples.
- Neighbours in storage are nearly always in one block (all but 1 in K pairs). Their places in it are a uniformly random
  pair, so they come K*C/(3B) steps apart on average, and at most K*C/B.
- No sample is preferred: each epoch rotates the line by a seeded number of places. So over the epochs the step of a
  sample is exactly uniform, even with few shards.
- Shuffling over a window does not mix a set that is sorted over longer stretches: a batch holds samples of the C to 2C
  shards in use, for any number of shards. So sets should be packed in shuffled order.

Evaluation (`shuffle=False`) is the same scheme with one lane, nothing permuted: batch t holds ids tB .. (t+1)B-1.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.order import selection
from data.order.line import EpochLine, epoch_line
from data.order.protocol import MASKED
from data.shards.index import Index
from data.splitmix import Draws, Purpose, key, permutation

MAX_DEFAULT_LANES = 64


@lru_cache(maxsize=4096)
def block_permutation(seed: int, epoch: int, lane: int, block: int, size: int) -> np.ndarray:
    """The order in which the `size` samples of a block are used: int32 (size,)."""
    return permutation(key(Purpose.BLOCK, seed, epoch, lane, block), size).astype(np.int32)


class _OwnLane(NamedTuple):
    """A lane, and the range low .. high-1 of its `width` slots that is asked for."""

    lane: int
    width: int
    low: int
    high: int


class SampleOrder:
    """The order of one data set. `Order` describes the methods.

    Args:
        index: the data set. Only the shards' counts are used.
        seed: of all permutations.
        batch_size: B, samples a step over all workers.
        lanes: C, 1 to B. Default: 64, or fewer if some would be empty.
        block: K, the number of samples that are shuffled together.
        shuffle: False gives storage order, for evaluation.
        subset: number of samples that take part: those of `selection.subset` with seed 0, for every `seed`. Default:
            all.
        exclude: int64, ids that do not take part. The subset becomes smaller by those that are in it.
        selected: the samples that take part, in place of `subset` and `exclude`.

    Raises:
        DataError: an empty data set, or numbers that do not fit together.
    """

    def __init__(
        self,
        index: Index,
        *,
        seed: int = 0,
        batch_size: int,
        lanes: int | None = None,
        block: int = 1024,
        shuffle: bool = True,
        subset: int | None = None,
        exclude: np.ndarray | None = None,
        selected: selection.Selection | None = None,
    ) -> None:
        if index.num_samples == 0:
            raise DataError(f"{index.url}: the data set holds no samples")
        if batch_size < 1 or block < 1:
            raise DataError(f"batch_size {batch_size} and block {block} must be at least 1")
        if lanes is not None and not 1 <= lanes <= batch_size:
            raise DataError(f"lanes {lanes}: choose 1 to {batch_size}, the batch size")
        self._selected = selected if selected is not None else _select(index, subset, exclude)
        self._shard_bounds = np.searchsorted(self._selected.first, index.starts)
        self.seed, self.batch_size, self.block, self.shuffle = seed, batch_size, block, shuffle
        self.num_samples = self._selected.num_samples
        self.lanes = (lanes or _default_lanes(batch_size, self.num_samples)) if shuffle else 1
        self.steps_per_epoch = -(-self.num_samples // batch_size)
        self._lines: dict[int, EpochLine] = {}

    @property
    def masked_share(self) -> float:
        return 1.0 - self.num_samples / (self.steps_per_epoch * self.batch_size)

    def epoch(self, step: int) -> int:
        return self._when(step)[0]

    def epochs(self, step: int, start: int, stop: int) -> np.ndarray:
        self._check_slots(start, stop)
        return np.full(stop - start, self.epoch(step), np.int64)

    def batch(self, step: int) -> list[int]:
        ids: list[int] = self.slots(step, 0, self.batch_size).tolist()
        return ids

    def slots(self, step: int, start: int, stop: int) -> np.ndarray:
        epoch, row = self._when(step)
        own_lanes = self._lanes_of(start, stop)
        positions = np.full(stop - start, MASKED, np.int64)
        filled = 0
        for lane, width, low, high in own_lanes:
            places = self._sequence(epoch, lane, row * width + low, row * width + high)
            positions[filled : filled + len(places)] = self._lane_start(lane) + places
            filled += high - low
        used = positions != MASKED
        positions[used] = self._line(epoch).ids(positions[used])
        return positions

    def blocks_entered(
        self, step: int, start: int, stop: int, since: int = 0, until: int | None = None
    ) -> list[tuple[int, np.ndarray]]:
        epoch, row = self._when(step)
        last_row = self.steps_per_epoch
        if until is not None:
            last_row = min(last_row, until - epoch * self.steps_per_epoch)
        found = []
        for lane, width, low, high in self._lanes_of(start, stop):
            first, last = row * width + low, min(row * width + high, self._lane_length(lane))
            if first >= last:
                continue
            entered = self._block_of(lane, first)
            if row > 0 and step > since:
                entered = max(entered, self._block_of(lane, (row - 1) * width + high - 1) + 1)
            for block in range(entered, self._block_of(lane, last - 1) + 1):
                places = np.arange(*self._block_bounds(lane, block))
                slot = places % width
                used = (places >= first) & (places < last_row * width) & (slot >= low) & (slot < high)
                found.append(self._lane_start(lane) + self._shuffled(epoch, lane, block)[used])
        ids = self._line(epoch).ids(np.concatenate(found)) if found else np.empty(0, np.int64)
        return [(epoch, np.sort(ids))] if len(ids) else []

    def most_waiting(self, start: int, stop: int) -> int:
        """See `Order`. Exact for whole, long lanes of one width; an upper bound for others.

        The samples that wait in a lane reach from this step's first one to the end of the block of this step's last
        one. Lanes of one width keep their stagger, so their sum is computed for every place of a step in a block. It is
        about half a block a lane, and up to a whole block for a worker with a single lane.
        """
        waiting: dict[int, np.ndarray] = {}
        for lane, width, low, high in self._lanes_of(start, stop):
            last_place = np.arange(0, self.block, math.gcd(width, self.block)) + high - 1 + self._stagger(lane)
            to_come = self.block - 1 - last_place % self.block  # places of the block after this step's last one
            others = width - (high - low)  # places of other slots, which come before
            cycles, rest = np.divmod(to_come, width)
            own = (high - low) * (cycles + 1) + np.maximum(rest - others, 0)
            waiting[width] = waiting.get(width, 0) + np.minimum(own, self._lane_length(lane))
        return sum(int(at_each_place.max()) for at_each_place in waiting.values())

    def _when(self, step: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return divmod(int(step), self.steps_per_epoch)  # a numpy integer would overflow in the hashes

    def _line(self, epoch: int) -> EpochLine:
        line = self._lines.get(epoch)
        if line is None:
            count = len(self._shard_bounds) - 1
            order = permutation(key(Purpose.SHARDS, self.seed, epoch), count) if self.shuffle else np.arange(count)
            draws = Draws(key(Purpose.TURN, self.seed, epoch))
            turn = draws.integer(self.num_samples) if self.shuffle else 0
            line = epoch_line(self._selected, self._shard_bounds, order, turn)
            # The reader may be in the next epoch while the loader finishes this one: keep two lines.
            self._lines = {other: self._lines[other] for other in list(self._lines)[-1:]} | {epoch: line}
        return line

    def _check_slots(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.batch_size:
            raise ValueError(f"slots {start} to {stop} of a batch of {self.batch_size}")

    def _lanes_of(self, start: int, stop: int) -> list[_OwnLane]:
        """Lanes that slots start .. stop-1 fall in."""
        self._check_slots(start, stop)
        found = []
        lane = ((start + 1) * self.lanes - 1) // self.batch_size  # the last one that begins at or before `start`
        while start < stop:
            begin, end = self._first_slot(lane), self._first_slot(lane + 1)
            found.append(_OwnLane(lane, end - begin, start - begin, min(stop, end) - begin))
            start, lane = end, lane + 1
        return found

    def _first_slot(self, lane: int) -> int:
        return lane * self.batch_size // self.lanes

    def _lane_start(self, lane: int) -> int:
        return self.num_samples * self._first_slot(lane) // self.batch_size

    def _lane_length(self, lane: int) -> int:
        return self._lane_start(lane + 1) - self._lane_start(lane)

    def _stagger(self, lane: int) -> int:
        """Number of samples that the first block of a lane is shorter."""
        digits = (self.lanes - 1).bit_length()
        reverse = int(f"{lane:0{digits}b}"[::-1], 2)
        return self.block * reverse >> digits

    def _block_of(self, lane: int, place: int) -> int:
        return (place + self._stagger(lane)) // self.block

    def _block_bounds(self, lane: int, block: int) -> tuple[int, int]:
        """First place and last place + 1 of a block in its lane."""
        begin = block * self.block - self._stagger(lane)
        return max(begin, 0), min(begin + self.block, self._lane_length(lane))

    def _shuffled(self, epoch: int, lane: int, block: int) -> np.ndarray:
        """The places of a block's samples on the lane, in order of use."""
        begin, end = self._block_bounds(lane, block)
        if not self.shuffle:
            return np.arange(begin, end)
        return begin + block_permutation(self.seed, epoch, lane, block, end - begin)

    def _sequence(self, epoch: int, lane: int, first: int, last: int) -> np.ndarray:
        """Elements first .. last-1 of a lane's shuffled sequence (fewer where the lane ends), as places on the lane."""
        last = min(last, self._lane_length(lane))
        found = [np.empty(0, np.int64)]
        for block in range(self._block_of(lane, first), self._block_of(lane, last - 1) + 1) if first < last else ():
            begin = self._block_bounds(lane, block)[0]
            found.append(self._shuffled(epoch, lane, block)[max(first - begin, 0) : last - begin])
        return np.concatenate(found)


def _select(index: Index, subset: int | None, exclude: np.ndarray | None) -> selection.Selection:
    selected = selection.everything(index) if subset is None else selection.subset(index, subset)
    if exclude is None:
        return selected
    if len(exclude) and not (exclude.min() >= 0 and exclude.max() < index.num_samples):
        raise DataError(
            f"{index.url}: ids {exclude.min()} to {exclude.max()} are excluded, of {index.num_samples} samples; "
            f"the list belongs to another data set"
        )
    selected = selection.without(selected, exclude)
    if selected.num_samples == 0:
        raise DataError(f"{index.url}: every selected sample is excluded; nothing is left to train on")
    return selected


def _default_lanes(batch_size: int, num_samples: int) -> int:
    """64, or a lane a slot, or fewer, so that each lane has at least one sample."""
    return min(MAX_DEFAULT_LANES, batch_size // -(-batch_size // num_samples))
