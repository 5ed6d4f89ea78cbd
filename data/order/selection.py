"""The samples of a data set that take part in a run: all, a fixed subset of any size, or all but some.

A selection is a list of runs of consecutive sample ids, since long stretches are read fast. A run never reaches over
the end of a shard.

A subset takes one cyclic stretch of every shard. So every part of the set takes part, even of a sorted set, and each
shard still needs one long read. The stretch of shard i, with n samples, begins at a seeded place; its k-th sample has
the priority

    (k + u) / n,    k = 0 .. n-1,    u seeded and uniform in [0, 1), one for each shard

and the subset of size N is the N samples of lowest priority. It follows:

- A larger subset contains every smaller one of the same seed: 9M is in 30M, which is in 90M.
- Below a threshold t are ceil(t n - u) samples of a shard: t n on average, and never a whole sample more or less. So
  shards contribute in proportion to their size.
- Within a shard every sample is equally likely. So is every sample of the set if all shards have one size; if sizes
  differ, a shard's share of the subset is proportional up to a fraction of one sample.

The samples of a stretch are neighbours in their shard. If each shard is sorted by class, a small subset has fewer of
the classes. Packing in shuffled order avoids that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.shards.index import Index
from data.splitmix import Purpose, key, stream


@dataclass(frozen=True, eq=False)
class Selection:
    """Runs of consecutive sample ids, ascending and disjoint, each inside one shard.

    Attributes:
        first: int64 (n,): the first id of each run.
        count: int64 (n,): the number of ids of each run, at least 1.
    """

    first: np.ndarray
    count: np.ndarray

    @property
    def num_samples(self) -> int:
        return int(self.count.sum())


def everything(index: Index) -> Selection:
    """All samples."""
    return _runs(index.starts[:-1], index.starts[1:])


def subset(index: Index, size: int, seed: int = 0) -> Selection:
    """`size` samples: always the same ones for the same index and seed.

    Raises:
        DataError: `size` is below 1 or above the number of samples.
    """
    if not 1 <= size <= index.num_samples:
        raise DataError(f"{index.url}: a subset of {size} samples out of {index.num_samples}; choose 1 to all of them")
    counts = np.diff(index.starts)
    hashes = stream(key(Purpose.SUBSET, seed, 0), len(counts)) >> np.uint64(11)
    taken = _lowest(counts, hashes.astype(np.float64) * 2.0**-53, size)
    # The bias of the remainder of a 64-bit hash is less than count / 2^64.
    places = stream(key(Purpose.SUBSET, seed, 1), len(counts)) % np.maximum(counts, 1).astype(np.uint64)
    begin = np.where(taken == counts, 0, places.astype(np.int64))  # a whole shard is one run, not two that meet
    wrapped = np.maximum(begin + taken - counts, 0)
    starts = index.starts[:-1]
    firsts = np.stack([starts, starts + begin], axis=1)
    ends = np.stack([starts + wrapped, starts + np.minimum(begin + taken, counts)], axis=1)
    return _runs(firsts.ravel(), ends.ravel())


def without(selection: Selection, ids: np.ndarray) -> Selection:
    """All of `selection` but `ids`: int64, in any order. Ids that are not in it change nothing."""
    # Each id ends one run and begins another after it; sorted, the i-th begin belongs to the i-th end. An id that is
    # given twice or is in no run makes a pair that ends before it begins, which is dropped like an empty run.
    ids = np.asarray(ids, np.int64)
    begins = np.sort(np.concatenate([selection.first, ids + 1]), kind="stable")  # a merge of two sorted stretches
    ends = np.sort(np.concatenate([selection.first + selection.count, ids]), kind="stable")
    return _runs(begins, ends)


def joined(indexes: Sequence[Index], selections: Sequence[Selection]) -> Selection:
    """The selections of several indexes as one of their concatenation (`index.concatenate`)."""
    offsets = np.cumsum([0] + [index.num_samples for index in indexes[:-1]])
    firsts = [selection.first + offset for selection, offset in zip(selections, offsets, strict=True)]
    return Selection(np.concatenate(firsts), np.concatenate([selection.count for selection in selections]))


def _runs(begins: np.ndarray, ends: np.ndarray) -> Selection:
    """Runs from their first ids and last ids + 1, the empty ones left out."""
    filled = ends > begins
    return Selection(begins[filled], (ends - begins)[filled])


def _lowest(counts: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """The number of each shard's samples among the `size` of lowest priority: int64, with the sum `size`.

    Args:
        counts: int64 (n,), samples in each shard.
        offsets: float64 (n,), u of each shard.

    The bisection ends at two neighbouring doubles, low and high, with at most `size` samples below low and at least
    `size` below high. A double cannot separate the priorities between them: those samples are taken by shard number.
    Rounded counts still grow with the threshold, so subsets of different sizes stay nested.
    """

    def below(threshold: float) -> np.ndarray:
        return np.clip(np.ceil(threshold * counts - offsets), 0, counts).astype(np.int64)

    low, high = 0.0, 2.0  # all priorities are below 1, but n - u rounds to n - 1 if u is nearly 1
    while low < (middle := (low + high) / 2) < high:
        if below(middle).sum() <= size:
            low = middle
        else:
            high = middle
    taken = below(low)
    tied = np.cumsum(below(high) - taken)
    return taken + np.diff(np.minimum(tied, size - taken.sum()), prepend=0)
