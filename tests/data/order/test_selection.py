import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError
from data.order.selection import Selection, everything, subset, without

MASK = 2**64 - 1

# Computed once, with the brute force below.
FROZEN = [0, 4, 5, 12, 13, 15, 17, 18]

counts_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0)


def ids_of(selection: Selection) -> list[int]:
    return [i for f, n in zip(selection.first.tolist(), selection.count.tolist(), strict=True) for i in range(f, f + n)]


def check_runs(selection: Selection, counts: list[int]) -> None:
    """Checks that runs are ascending and disjoint, and that none is empty or crosses the end of a shard."""
    assert selection.first.dtype == selection.count.dtype == np.int64
    assert (selection.count > 0).all()
    assert (selection.first[1:] >= (selection.first + selection.count)[:-1]).all()
    starts = np.cumsum([0, *counts])
    shards = [
        np.searchsorted(starts, ids, side="right") for ids in (selection.first, selection.first + selection.count - 1)
    ]
    assert (shards[0] == shards[1]).all()


def added_ids(inner: Selection, outer: Selection) -> int:
    """Number of ids that `outer` has and `inner` has not. Each run of `inner` must be in one of `outer`."""
    around = np.searchsorted(outer.first, inner.first, side="right") - 1
    assert (around >= 0).all()
    assert (inner.first + inner.count <= (outer.first + outer.count)[around]).all()
    return outer.num_samples - inner.num_samples


def brute_force_subset(counts: list[int], size: int, seed: int) -> list[int]:
    """Every sample's priority as an exact fraction, sorted. Shares no code with the package."""

    def splitmix(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def draw(which: int, shard: int) -> int:
        state = 0
        for part in (4, seed, which):
            state = splitmix(state ^ part)
        return splitmix((state + shard * 0x9E3779B97F4A7C15) & MASK)

    ranked = []
    for shard, (start, count) in enumerate(zip(itertools.accumulate([0, *counts[:-1]]), counts, strict=True)):
        offset = Fraction(draw(0, shard) >> 11, 2**53)
        ranked += [((k + offset) / count, start + (draw(1, shard) % count + k) % count) for k in range(count)]
    return sorted(sample for _, sample in sorted(ranked)[:size])


@settings(max_examples=60, deadline=None)
@given(st.data(), counts_strategy, st.integers(0, 2**40))
def test_subset_is_the_lowest_priorities(make_index, data, counts, seed):
    size = data.draw(st.integers(1, sum(counts)))
    chosen = subset(make_index(counts), size, seed)
    check_runs(chosen, counts)
    assert chosen.num_samples == size
    assert ids_of(chosen) == brute_force_subset(counts, size, seed)
    assert len(subset(make_index(counts), sum(counts), seed).first) == sum(count > 0 for count in counts)


def test_subset_never_changes(make_index):
    """A study that a later version repeats must see the same samples: these numbers never change."""
    assert brute_force_subset([5, 9, 2, 7], 8, 42) == FROZEN
    assert ids_of(subset(make_index([5, 9, 2, 7]), 8, 42)) == FROZEN


def test_subsets_of_the_papers_sizes_are_nested_and_in_proportion(make_index):
    """9M in 30M in 90M of 303M samples in 30,000 uneven shards; each shard's share is within one sample of its own."""
    counts = np.array([9_000 + (n * 7919) % 2201 for n in range(30_000)])
    index = make_index(counts.tolist())
    total, inner = int(counts.sum()), None
    for size in (9_000_000, 30_000_000, 90_000_000):
        chosen = subset(index, size)
        assert chosen.num_samples == size
        shard = np.searchsorted(index.starts, chosen.first, side="right") - 1
        held = np.bincount(shard, chosen.count, len(counts))
        assert np.abs(held - counts * size / total).max() < 1.1
        assert len(chosen.first) <= 2 * len(counts)
        if inner is not None:
            assert added_ids(inner, chosen) == size - inner.num_samples
        inner = chosen


@settings(max_examples=100, deadline=None)
@given(st.data(), counts_strategy, st.integers(0, 99))
def test_subsets_are_nested(make_index, data, counts, seed):
    sizes = sorted(data.draw(st.lists(st.integers(1, sum(counts)), min_size=2, max_size=4)))
    index = make_index(counts)
    sets = [set(ids_of(subset(index, size, seed))) for size in sizes]
    assert all(small <= large for small, large in itertools.pairwise(sets))


def test_priorities_that_are_equal_as_doubles(make_index):
    """With more samples than doubles, the size is still exact, and the next size always adds one sample."""
    index = make_index([2**50 - 1, 3] * 40)
    sizes = range(40 * 2**48, 40 * 2**48 + 20)
    sets = [subset(index, size) for size in sizes]
    assert [chosen.num_samples for chosen in sets] == list(sizes)
    for small, large in itertools.pairwise(sets):
        assert added_ids(small, large) == 1


@pytest.mark.parametrize("counts", [[10] * 6, [13, 4, 1, 22, 20]])
def test_every_sample_is_equally_likely(make_index, counts):
    """Over 800 seeds, the frequencies of 60 samples are within 5 standard deviations."""
    index, size, seeds = make_index(counts), 21, 800
    seen = np.zeros(60)
    for seed in range(seeds):
        seen[ids_of(subset(index, size, seed))] += 1
    share = size / 60
    assert np.abs(seen - seeds * share).max() < 5 * np.sqrt(seeds * share * (1 - share))
    held = np.add.reduceat(seen, index.starts[:-1]) / seeds
    assert np.abs(held - share * np.array(counts)).max() < 0.1  # of a sample


def test_seeds_differ(make_index):
    index = make_index([100] * 10)
    assert len({tuple(ids_of(subset(index, 100, seed))) for seed in range(5)}) == 5


@pytest.mark.parametrize("size", [0, -3, 25])
def test_impossible_sizes(make_index, size):
    with pytest.raises(DataError, match=f"a subset of {size} samples out of 24; choose 1 to all of them"):
        subset(make_index([5, 19]), size)


@settings(max_examples=100, deadline=None)
@given(st.data(), counts_strategy)
def test_without_takes_ids_out(make_index, data, counts):
    """With any ids: twice, in any order, not selected, in no shard."""
    index = make_index(counts)
    selected = subset(index, data.draw(st.integers(1, sum(counts))))
    ids = data.draw(st.lists(st.integers(-2, sum(counts) + 2)))
    left = without(selected, np.array(ids, np.int64))
    check_runs(left, counts)
    assert ids_of(left) == [sample for sample in ids_of(selected) if sample not in ids]
    again = without(left, np.array(ids, np.int64))
    assert ids_of(again) == ids_of(left)


@given(counts_strategy)
def test_everything(make_index, counts):
    selected = everything(make_index(counts))
    check_runs(selected, counts)
    assert ids_of(selected) == list(range(sum(counts)))


def test_a_million_excluded(make_index):
    """By runs, not ids: a million samples out of 303M need a few arrays of a million."""
    index = make_index([10_100] * 30_000)
    ids = np.arange(0, index.num_samples, 303, dtype=np.int64)
    left = without(everything(index), ids)
    assert left.num_samples == index.num_samples - len(ids)
    assert len(left.first) < len(ids) + 30_000
    assert left.first[:2].tolist() == [1, 304]
