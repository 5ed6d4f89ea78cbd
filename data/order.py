"""Which samples make up step t: pure arithmetic on (seed, t), the same for any number of workers.

    shards of the epoch, permuted    | 7 | 0 | 3 |  5  | 1 |  6  | 2 | 4 |
    one line, cut into C lanes       |-------|-------|-------|-------|         lengths differ by at most 1
    each lane shuffled in blocks     |--|--|-|-|--|--|--|--|-|-|--|--|         of K samples
    step t                              ^       ^       ^       ^              B/C samples from each lane

A rank that owns some slots of the batch reads the lanes that these slots fall in, block after block: long sequential
reads. What a batch mixes comes from C places of the data set, each shuffled over K samples. Every sample comes exactly
once an epoch; lanes that are one sample short, and the rest of the epoch's last batch, are masked (-1).

Blocks of different lanes are staggered (lane l's first block is shorter by l*K/C), so that lanes turn to their
next block one after another: reads spread evenly over the steps instead of coming all at once every K*C/B steps.

Evaluation (`shuffle=False`) is the same scheme with one lane, nothing permuted: batch t holds ids tB .. (t+1)B-1.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.errors import DataError
from data.index import Index
from data.splitmix import Purpose, key, permutation

MAX_DEFAULT_LANES = 64
MASKED = -1


@dataclass(frozen=True, eq=False)
class EpochLine:
    """The shards of one epoch laid end to end.

    Attributes:
        starts: int64 (shards + 1,): where each shard begins on the line, in the epoch's order; then the length.
        shift: int64 (shards,): sample id minus line position within that shard.
    """

    starts: np.ndarray
    shift: np.ndarray

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids at these positions of the line: int64, same shape."""
        return positions + self.shift[np.searchsorted(self.starts, positions, side="right") - 1]


def epoch_line(shard_starts: np.ndarray, shard_order: np.ndarray) -> EpochLine:
    """Lay shards out in `shard_order`; `shard_starts` are the first ids of each and then the number of samples."""
    counts = np.diff(shard_starts)[shard_order]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return EpochLine(starts, shard_starts[shard_order] - starts[:-1])


@lru_cache(maxsize=4096)
def block_permutation(seed: int, epoch: int, lane: int, block: int, size: int) -> np.ndarray:
    """Order of use of the `size` samples of a block: int32 (size,)."""
    return permutation(key(Purpose.BLOCK, seed, epoch, lane, block), size).astype(np.int32)


class SampleOrder:
    """The sample ids of every step.

    Args:
        index: the data set (only the shards' counts are used).
        seed: of all permutations.
        batch_size: B, samples a step over all workers.
        lanes: C, a divisor of B. Default: the largest one that is at most 64 and leaves no lane empty.
        block: K, samples within which a lane is shuffled.
        shuffle: False gives storage order, for evaluation.

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
    ) -> None:
        if index.num_samples == 0:
            raise DataError(f"{index.url}: the data set holds no samples")
        if batch_size < 1 or block < 1:
            raise DataError(f"batch_size {batch_size} and block {block} must be at least 1")
        if lanes is not None and (lanes < 1 or batch_size % lanes):
            raise DataError(f"lanes {lanes} does not divide the batch size {batch_size}")
        self.seed, self.batch_size, self.block, self.shuffle = seed, batch_size, block, shuffle
        self.num_samples = index.num_samples
        self.lanes = (lanes or _default_lanes(batch_size, index.num_samples)) if shuffle else 1
        self.lane_slots = batch_size // self.lanes
        """Slots that each lane fills in a batch. Slots are lane-major: lane l has [l*lane_slots, (l+1)*lane_slots)."""
        longest = self._lane_length(self.lanes - 1)  # the last lane gets what rounding leaves
        self.steps_per_epoch = -(-longest // self.lane_slots)
        self._shard_starts = index.starts
        self._lines: dict[int, EpochLine] = {}

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Sample ids of a step, slot by slot; -1 is a masked slot. Length batch_size."""
        return self.slots(step, 0, self.batch_size).tolist()

    def slots(self, step: int, start: int, stop: int) -> np.ndarray:
        """Sample ids of slots start .. stop-1 of a step: int64 (stop - start,). Costs nothing for other slots."""
        epoch, row = self._when(step)
        positions = np.full(max(stop - start, 0), MASKED, np.int64)
        for lane, low, high in self._lanes_of(start, stop):
            places = self._sequence(epoch, lane, row * self.lane_slots + low, row * self.lane_slots + high)
            first_slot = lane * self.lane_slots + low - start
            positions[first_slot : first_slot + len(places)] = self._lane_start(lane) + places
        filled = positions != MASKED
        positions[filled] = self._line(epoch).ids(positions[filled])
        return positions

    def entered(self, step: int, start: int, stop: int, since: int = 0, until: int | None = None) -> np.ndarray:
        """What a reader has to fetch at `step`: the blocks that slots start .. stop-1 enter there.

        Of each lane block that these slots touch at `step` and did not touch in steps since .. step-1, the ids that
        they use in steps step .. until-1 (default: to the block's end). Over consecutive steps from `since` on, every
        id that the slots use is given exactly once, at or before the step that uses it.

        Returns:
            int64 ids in storage order.
        """
        epoch, row = self._when(step)
        last_row = self.steps_per_epoch
        if until is not None:
            last_row = min(last_row, until - epoch * self.steps_per_epoch)
        found = [np.empty(0, np.int64)]
        for lane, low, high in self._lanes_of(start, stop):
            first, last = row * self.lane_slots + low, min(row * self.lane_slots + high, self._lane_length(lane))
            if first >= last:
                continue
            entered = self._block_of(lane, first)
            if row > 0 and step > since:
                entered = max(entered, self._block_of(lane, first - low + high - self.lane_slots - 1) + 1)
            for block in range(entered, self._block_of(lane, last - 1) + 1):
                begin, end = self._block_bounds(lane, block)
                places = np.arange(begin, end)
                slot = places % self.lane_slots
                used = (places >= first) & (places < last_row * self.lane_slots) & (slot >= low) & (slot < high)
                found.append(self._lane_start(lane) + self._shuffled(epoch, lane, block)[used])
        return np.sort(self._line(epoch).ids(np.concatenate(found)))

    def block_ranges(self, epoch: int, lane: int, block: int) -> list[tuple[int, int, int]]:
        """Where a block lies in storage: [(shard number, first position, last position + 1), ...], in reading order."""
        begin, end = (self._lane_start(lane) + place for place in self._block_bounds(lane, block))
        line = self._line(epoch)
        edges = np.unique(np.clip(line.starts, begin, end))
        first_ids = line.ids(edges[:-1])
        shards = np.searchsorted(self._shard_starts, first_ids, side="right") - 1
        positions = first_ids - self._shard_starts[shards]
        return list(zip(shards.tolist(), positions.tolist(), (positions + np.diff(edges)).tolist(), strict=True))

    def _when(self, step: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return divmod(step, self.steps_per_epoch)

    def _line(self, epoch: int) -> EpochLine:
        line = self._lines.get(epoch)
        if line is None:
            count = len(self._shard_starts) - 1
            order = permutation(key(Purpose.SHARDS, self.seed, epoch), count) if self.shuffle else np.arange(count)
            line = epoch_line(self._shard_starts, order)
            # The reader runs ahead into the next epoch while the loader ends this one: two are alive at a time.
            self._lines = {other: self._lines[other] for other in list(self._lines)[-1:]} | {epoch: line}
        return line

    def _lanes_of(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Lanes that slots start .. stop-1 fall in: (lane, first, last + 1 of the lane's own slots)."""
        if not 0 <= start <= stop <= self.batch_size:
            raise ValueError(f"slots {start} to {stop} of a batch of {self.batch_size}")
        n = self.lane_slots
        lanes = range(start // n, -(-stop // n)) if start < stop else ()
        return [(lane, max(start - lane * n, 0), min(stop - lane * n, n)) for lane in lanes]

    def _lane_start(self, lane: int) -> int:
        return lane * self.num_samples // self.lanes

    def _lane_length(self, lane: int) -> int:
        return self._lane_start(lane + 1) - self._lane_start(lane)

    def _block_of(self, lane: int, place: int) -> int:
        return (place + lane * self.block // self.lanes) // self.block

    def _block_bounds(self, lane: int, block: int) -> tuple[int, int]:
        """First place and last place + 1 of a block in its lane."""
        begin = block * self.block - lane * self.block // self.lanes
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


def _default_lanes(batch_size: int, num_samples: int) -> int:
    return next(lanes for lanes in range(min(MAX_DEFAULT_LANES, num_samples), 0, -1) if batch_size % lanes == 0)
