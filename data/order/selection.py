"""Which samples of a data set take part in a run: all, a fixed subset of any size, or all but some.

A selection is a list of runs of consecutive sample ids, because what is read in long stretches is read fast. A run
never reaches over the end of a shard.

A subset takes one cyclic stretch of every shard, so that every part of the set takes part however it is sorted, and
what it takes of a shard is still one long read. The stretch of shard i, with n samples, begins at a seeded place; its
k-th sample has the priority

    (k + u) / n,    k = 0 .. n-1,    u seeded and uniform in [0, 1), one for each shard

and the subset of size N is the N samples of lowest priority. From this follows:

- A larger subset holds every smaller one of the same seed: 9M is in 30M, which is in 90M.
- Below a threshold t lie ceil(t n - u) samples of a shard, t n on average and never a whole sample more or less: shards
  contribute in proportion to their size.
- Within a shard every sample is equally likely, and so is every sample of the set where shards have one size. Where
  sizes differ, a shard's share of the subset is proportional up to a fraction of one sample.

A shard's stretch holds what lies side by side there: a set whose shards are each sorted by class gives a small subset
fewer of the classes. Packing in shuffled order avoids that.
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
        count: int64 (n,): how many ids it has, at least 1.
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
    """`size` samples, the same ones for ever for the same index and seed.

    Raises:
        DataError: there are not as many samples, or none is asked for.
    """
    if not 1 <= size <= index.num_samples:
        raise DataError(f"{index.url}: a subset of {size} samples out of {index.num_samples}; choose 1 to all of them")
    counts = np.diff(index.starts)
    hashes = stream(key(Purpose.SUBSET, seed, 0), len(counts)) >> np.uint64(11)
    taken = _lowest(counts, hashes.astype(np.float64) * 2.0**-53, size)
    # The remainder of a 64-bit hash favours some places by less than count / 2^64.
    places = stream(key(Purpose.SUBSET, seed, 1), len(counts)) % np.maximum(counts, 1).astype(np.uint64)
    begin = np.where(taken == counts, 0, places.astype(np.int64))  # a whole shard is one run, not two that meet
    wrapped = np.maximum(begin + taken - counts, 0)
    starts = index.starts[:-1]
    firsts = np.stack([starts, starts + begin], axis=1)
    ends = np.stack([starts + wrapped, starts + np.minimum(begin + taken, counts)], axis=1)
    return _runs(firsts.ravel(), ends.ravel())


def without(selection: Selection, ids: np.ndarray) -> Selection:
    """All of `selection` but `ids` (int64, in any order; those that are not in it change nothing)."""
    # Each id ends one run and begins another behind it; sorted, the i-th beginning belongs to the i-th end. An id that
    # is given twice or is in no run makes a pair that ends before it begins, which is dropped like an empty run.
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
    """How many of each shard's samples are among the `size` of lowest priority: int64, sums to `size`.

    Args:
        counts: int64 (n,), samples in each shard.
        offsets: float64 (n,), u of each shard.

    The bisection ends at two neighbouring doubles, low and high, with at most `size` samples below the one and at least
    `size` below the other. Between them lie samples whose priorities a double cannot tell apart: they go by shard
    number. Counts grow with the threshold even as doubles round, so subsets of different sizes stay nested.
    """

    def below(threshold: float) -> np.ndarray:
        return np.clip(np.ceil(threshold * counts - offsets), 0, counts).astype(np.int64)

    low, high = 0.0, 2.0  # all priorities are below 1, but n - u rounds to n - 1 where u is nearly 1
    while low < (middle := (low + high) / 2) < high:
        if below(middle).sum() <= size:
            low = middle
        else:
            high = middle
    taken = below(low)
    tied = np.cumsum(below(high) - taken)
    return taken + np.diff(np.minimum(tied, size - taken.sum()), prepend=0)
