import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, SampleOrder

MASK = 2**64 - 1

# Computed once: the first by `reference_epoch` below for 23 samples in four shards, the second for 300M in 30,000.
FROZEN = [[14, 6, 10, 12, 20, 21], [8, -1, 18, 19, 4, 3], [14, 5, 12, 10, 16, 4]]
FROZEN_BIG = [268692443, 25352552, 111241529, 188451648, 235561939, 49371323, 267761242, 158121544]

counts_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0)
lanes_and_share = st.tuples(st.integers(1, 7), st.integers(1, 6))


def reference_epoch(
    counts: list[int], seed: int, epoch: int, batch_size: int, lanes: int, block: int
) -> list[list[int]]:
    """All batches of an epoch, the slow and obvious way, sharing no code with the package."""

    def splitmix(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def shuffled(items: list[int], *parts: int) -> list[int]:
        state = 0
        for part in parts:
            state = splitmix(state ^ part)
        hashes = [splitmix((state + n * 0x9E3779B97F4A7C15) & MASK) for n in range(len(items))]
        return [item for _, item in sorted(zip(hashes, items, strict=True))]

    ids = iter(range(sum(counts)))
    shards = [list(itertools.islice(ids, count)) for count in counts]
    line = [sample for shard in shuffled(list(range(len(counts))), 1, seed, epoch) for sample in shards[shard]]
    sequences = []
    for lane in range(lanes):
        own = line[lane * len(line) // lanes : (lane + 1) * len(line) // lanes]
        first_block = block - lane * block // lanes
        edges = [0, *range(first_block, len(own), block), len(own)] if own else [0]
        parts = [own[a:b] for a, b in itertools.pairwise(edges)]
        sequences.append([s for n, part in enumerate(parts) for s in shuffled(part, 2, seed, epoch, lane, n)])
    share = batch_size // lanes
    steps = math.ceil(max(map(len, sequences)) / share)
    padded = [sequence + [-1] * (steps * share - len(sequence)) for sequence in sequences]
    return [[s for sequence in padded for s in sequence[t * share : (t + 1) * share]] for t in range(steps)]


@settings(max_examples=150, deadline=None)
@given(counts_strategy, lanes_and_share, st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_equals_the_obvious_implementation(make_index, counts, split, block, seed, epoch):
    lanes, share = split
    order = SampleOrder(make_index(counts), seed=seed, batch_size=lanes * share, lanes=lanes, block=block)
    expected = reference_epoch(counts, seed, epoch, lanes * share, lanes, block)
    assert order.steps_per_epoch == len(expected)
    assert [order.batch(epoch * len(expected) + t) for t in range(len(expected))] == expected


def test_frozen_for_ever(make_index):
    """A run resumed under a later version must see the same samples: these numbers never change."""
    order = SampleOrder(make_index([5, 9, 2, 7]), seed=42, batch_size=6, lanes=3, block=4)
    assert order.steps_per_epoch == 4
    assert [order.batch(step) for step in (0, 3, 4)] == FROZEN
    big = SampleOrder(make_index([10_000] * 30_000), seed=7, batch_size=4096)
    assert big.batch(1_000_000)[::512] == FROZEN_BIG


@settings(max_examples=100, deadline=None)
@given(counts_strategy, lanes_and_share, st.integers(1, 50), st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_every_sample_exactly_once_an_epoch(make_index, counts, split, block, seed, epoch, shuffle):
    lanes, share = split
    order = SampleOrder(
        make_index(counts), seed=seed, batch_size=lanes * share, lanes=lanes, block=block, shuffle=shuffle
    )
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [order.batch(step) for step in steps]
    assert sorted(sample for batch in batches for sample in batch if sample != -1) == list(range(sum(counts)))
    assert {order.epoch(step) for step in steps} == {epoch}
    assert all(len(batch) == lanes * share for batch in batches)
    if sum(counts) >= lanes:  # only an epoch's last two batches have holes: lanes differ by at most one sample
        assert all(-1 not in batch for batch in batches[:-2])


@settings(max_examples=100, deadline=None)
@given(counts_strategy, lanes_and_share, st.integers(1, 50), st.integers(1, 8), st.integers(0, 20), st.booleans())
def test_slots_of_any_number_of_workers_make_the_batch(make_index, counts, split, block, workers, step, shuffle):
    batch_size = split[0] * split[1]
    order = SampleOrder(make_index(counts), batch_size=batch_size, lanes=split[0], block=block, shuffle=shuffle)
    share = math.ceil(batch_size / workers)
    parts = [
        order.slots(step, min(rank * share, batch_size), min((rank + 1) * share, batch_size)) for rank in range(workers)
    ]
    assert np.concatenate(parts).tolist() == order.batch(step)


@settings(max_examples=150, deadline=None)
@given(st.data(), counts_strategy, lanes_and_share, st.integers(1, 50), st.booleans())
def test_entered_gives_every_id_once_and_in_time(make_index, data, counts, split, block, shuffle):
    """From any first step to any last one, over epoch ends, what a reader is told to fetch is what the slots use."""
    batch_size = split[0] * split[1]
    order = SampleOrder(make_index(counts), seed=3, batch_size=batch_size, lanes=split[0], block=block, shuffle=shuffle)
    start = data.draw(st.integers(0, batch_size))
    stop = data.draw(st.integers(start, batch_size))
    first = data.draw(st.integers(0, 2 * order.steps_per_epoch))
    last = first + data.draw(st.integers(0, 2 * order.steps_per_epoch + 1))
    fetched: dict[tuple[int, int], int] = {}
    used: dict[tuple[int, int], int] = {}
    for step in range(first, last):
        entered = order.entered(step, start, stop, since=first, until=last)
        assert np.all(np.diff(entered) > 0)
        for sample in entered.tolist():
            assert (order.epoch(step), sample) not in fetched
            fetched[order.epoch(step), sample] = step
        for sample in order.slots(step, start, stop).tolist():
            if sample != -1:
                used[order.epoch(step), sample] = step
                assert fetched[order.epoch(step), sample] <= step
    assert fetched.keys() == used.keys()


@settings(max_examples=60, deadline=None)
@given(counts_strategy, lanes_and_share, st.integers(1, 50))
def test_block_ranges_are_the_ids_of_the_block(make_index, counts, split, block):
    """Blocks of all lanes together tile the storage, and a block's ids come only from the steps of its lane's block."""
    index, (lanes, share) = make_index(counts), split
    order = SampleOrder(index, seed=5, batch_size=lanes * share, lanes=lanes, block=block)
    tiled = []
    for lane, number in itertools.product(range(lanes), range(sum(counts) // block + 3)):
        for shard, first, last in order.block_ranges(2, lane, number):
            assert 0 <= first < last <= counts[shard]
            tiled += [int(index.starts[shard]) + position for position in range(first, last)]
    assert sorted(tiled) == list(range(sum(counts)))


def test_lanes_enter_their_blocks_in_turn(make_index):
    """Of 8 lanes with blocks of 64 and 4 samples a step, one begins a block every second step; none begin together."""
    order = SampleOrder(make_index([1000] * 8), batch_size=32, lanes=8, block=64)
    entered = [len(order.entered(step, 0, 32)) for step in range(1, 200)]
    assert entered.count(64) == 99 or entered.count(64) == 100
    assert set(entered) == {0, 64}


def test_storage_order(make_index):
    order = SampleOrder(make_index([3, 0, 4, 5]), batch_size=5, shuffle=False)
    assert order.steps_per_epoch == 3
    assert [order.batch(step) for step in range(3)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, -1, -1, -1]]


def test_epochs_and_seeds_differ(make_index):
    index = make_index([50] * 4)
    orders = [SampleOrder(index, seed=seed, batch_size=200, lanes=4, block=16) for seed in (0, 1)]
    batches = [tuple(order.batch(step)) for order in orders for step in range(3)]
    assert len(set(batches)) == 6


def test_a_batch_mixes_all_lanes_and_a_block_mixes_its_samples(make_index):
    """Neighbours in storage end up spread: within a lane's block, place of storage and of use do not correlate."""
    order = SampleOrder(make_index([4096]), seed=1, batch_size=64, lanes=4, block=1024)
    sequence = np.concatenate([order.slots(step, 0, 16) for step in range(64)])
    assert sorted(sequence.tolist()) == list(range(1024))
    assert abs(np.corrcoef(sequence, np.arange(1024))[0, 1]) < 0.12
    assert [{sample // 1024 for sample in order.slots(3, 16 * lane, 16 * lane + 16).tolist()} for lane in range(4)] == [
        {lane} for lane in range(4)
    ]


@pytest.mark.parametrize(
    ("batch_size", "samples", "lanes"), [(4096, 10**6, 64), (100, 10**6, 50), (97, 10**6, 1), (128, 10, 8), (6, 4, 3)]
)
def test_default_lanes(make_index, batch_size, samples, lanes):
    order = SampleOrder(make_index([samples]), batch_size=batch_size)
    assert order.lanes == lanes


def test_more_lanes_than_samples(make_index):
    order = SampleOrder(make_index([2]), batch_size=8, lanes=8)
    assert order.steps_per_epoch == 1
    assert sorted(order.batch(0)) == [-1] * 6 + [0, 1]


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([0, 0], {"batch_size": 4}, "no samples"),
        ([9], {"batch_size": 6, "lanes": 4}, "lanes 4 does not divide the batch size 6"),
        ([9], {"batch_size": 0}, "at least 1"),
        ([9], {"batch_size": 6, "block": 0}, "at least 1"),
    ],
)
def test_impossible_numbers(make_index, counts, options, words):
    with pytest.raises(DataError, match=words):
        SampleOrder(make_index(counts), **options)


def test_impossible_slots(make_index):
    order = SampleOrder(make_index([9]), batch_size=4)
    with pytest.raises(ValueError, match="step -1"):
        order.batch(-1)
    with pytest.raises(ValueError, match="slots 2 to 5"):
        order.slots(0, 2, 5)


def test_full_size(make_index):
    """303M samples in 30,000 shards: from a cold start, a late step makes no more function calls than an early one."""
    counts = [10_100 + n % 7 for n in range(30_000)]
    index = make_index(counts)
    assert index.num_samples > 303_000_000
    calls = []
    for seed, step in ((1, 1), (2, 1_000_000)):
        order = SampleOrder(index, seed=seed, batch_size=4096)
        assert order.steps_per_epoch == math.ceil(math.ceil(index.num_samples / 64) / 64)
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument, events=events: events.append(event))
        batch = order.batch(step)
        sys.setprofile(None)
        calls.append(len(events))
        assert len(set(batch)) == 4096
        assert min(batch) >= 0
        assert max(batch) < index.num_samples
        shards = {index.locate(sample)[0] for sample in batch}
        assert 60 <= len(shards) <= 140  # 64 lanes, each inside a block that spans one or two shards
    assert calls[1] < 1.2 * calls[0]
