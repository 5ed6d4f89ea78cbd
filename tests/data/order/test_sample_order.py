import itertools
import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, SampleOrder
from data.order.sample_order import block_permutation
from data.order.selection import subset

MASK = 2**64 - 1

# Computed once: by `reference_epoch` below for 23 samples in four shards, and by this program for 330,000 in 300 uneven
# ones and for 300M in 30,000.
FROZEN = [[17, 20, 1, 2, 7, 9], [22, -1, 6, 5, 12, 16], [15, 6, 11, 12, 17, 18]]
FROZEN_UNEVEN = [
    [2923, 67742, 20309, 16654, 314849, 234519, 201545, 250553],
    [209566, 202440, 52990, 217459, 204405, 241159, 57817, 289467],
    [293616, 96497, 38508, 41447, 168919, 110689, 94393, 69926],
]
FROZEN_BIG = [168470635, 296200170, 280000855, 172040226, 235550927, 77970832, 214690337, 288010595]

counts_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0)
sizes_strategy = st.integers(1, 40).flatmap(lambda batch: st.tuples(st.just(batch), st.none() | st.integers(1, batch)))


def reference_epoch(
    shards: list[list[int]], seed: int, epoch: int, batch_size: int, lanes: int, block: int
) -> list[list[int]]:
    """All batches of an epoch in the slow and obvious way. It shares no code with the package."""

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

    line = [sample for shard in shuffled(list(range(len(shards))), 1, seed, epoch) for sample in shards[shard]]
    hashed = 0
    for part in (5, seed, epoch):
        hashed = splitmix(hashed ^ part)
    turn = splitmix(hashed) * len(line) >> 64
    line = line[turn:] + line[:turn]
    steps = math.ceil(len(line) / batch_size)
    batches: list[list[int]] = [[] for _ in range(steps)]
    for lane in range(lanes):
        slots = range(lane * batch_size // lanes, (lane + 1) * batch_size // lanes)
        own = line[len(line) * slots.start // batch_size : len(line) * slots.stop // batch_size]
        bits = [lane >> place & 1 for place in range(max(lanes - 1, 0).bit_length())]  # the lowest first
        first_block = block - math.floor(block * sum(bit / 2 ** (n + 1) for n, bit in enumerate(bits)))
        edges = [0, *range(first_block, len(own), block), len(own)] if own else [0]
        parts = [own[a:b] for a, b in itertools.pairwise(edges)]
        sequence = [s for n, part in enumerate(parts) for s in shuffled(part, 2, seed, epoch, lane, n)]
        assert len(sequence) <= steps * len(slots)
        sequence += [-1] * (steps * len(slots) - len(sequence))
        for step, batch in enumerate(batches):
            batch += sequence[step * len(slots) : (step + 1) * len(slots)]
    return batches


def shards_of(counts: list[int], chosen: set[int] | None = None) -> list[list[int]]:
    """The ids of each shard that are in `chosen`."""
    ids = iter(range(sum(counts)))
    return [[n for n in itertools.islice(ids, count) if chosen is None or n in chosen] for count in counts]


@st.composite
def choices(draw, counts: list[int]) -> tuple[int | None, list[int]]:
    """A subset's size or None, and some excluded ids, such that at least one sample is left."""
    size = draw(st.none() | st.integers(1, sum(counts)))
    return size, draw(st.lists(st.integers(0, sum(counts) - 1), max_size=(size or sum(counts)) - 1))


def chosen_by(index, size: int | None, exclude: list[int]) -> set[int]:
    runs = subset(index, size) if size else None
    chosen = range(index.num_samples)
    if runs:
        chosen = [i for f, n in zip(runs.first.tolist(), runs.count.tolist(), strict=True) for i in range(f, f + n)]
    return set(chosen) - set(exclude)


@settings(max_examples=100, deadline=None)
@given(st.data(), counts_strategy, sizes_strategy, st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_equals_the_obvious_implementation(make_index, data, counts, sizes, block, seed, epoch):
    batch_size, lanes = sizes
    index = make_index(counts)
    size, exclude = data.draw(choices(counts))
    order = SampleOrder(
        index,
        seed=seed,
        batch_size=batch_size,
        lanes=lanes,
        block=block,
        subset=size,
        exclude=np.array(exclude, np.int64) if exclude else None,
    )
    shards = shards_of(counts, chosen_by(index, size, exclude))
    assert order.num_samples == sum(map(len, shards))
    expected = reference_epoch(shards, seed, epoch, batch_size, order.lanes, block)
    assert order.steps_per_epoch == len(expected)
    assert [order.batch(epoch * len(expected) + t) for t in range(len(expected))] == expected


def test_never_changes(make_index):
    """A run that a later version resumes must see the same samples: these numbers never change."""
    order = SampleOrder(make_index([5, 9, 2, 7]), seed=42, batch_size=6, lanes=3, block=4)
    assert order.steps_per_epoch == 4
    assert [order.batch(step) for step in (0, 3, 4)] == FROZEN
    uneven = SampleOrder(make_index([997 + (n * 37) % 211 for n in range(300)]), seed=3, batch_size=256)
    assert (uneven.lanes, uneven.steps_per_epoch) == (64, 1291)
    assert [uneven.batch(step)[::32] for step in (1, 1290, 99_999)] == FROZEN_UNEVEN
    big = SampleOrder(make_index([10_000] * 30_000), seed=7, batch_size=4096)
    assert big.batch(1_000_000)[::512] == FROZEN_BIG


@settings(max_examples=60, deadline=None)
@given(st.data(), counts_strategy, sizes_strategy, st.integers(1, 50), st.integers(0, 99), st.booleans())
def test_exactly_once_through_restarts_with_other_workers(make_index, train, data, counts, sizes, block, seed, shuffle):
    """Three epochs by 1 to 8 workers, with another number after each restart at a random step: equal batches."""
    batch_size, lanes = sizes
    index = make_index(counts)
    size, exclude = data.draw(choices(counts))
    order = SampleOrder(
        index,
        seed=seed,
        batch_size=batch_size,
        lanes=lanes,
        block=block,
        shuffle=shuffle,
        subset=size,
        exclude=np.array(exclude, np.int64),
    )
    steps = 3 * order.steps_per_epoch
    restarts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=3)))
    batches = []
    for first, last in itertools.pairwise([0, *restarts, steps]):
        batches += train(order, first, last, data.draw(st.integers(1, 8)))
    assert [ids for ids, _ in batches] == [order.batch(step) for step in range(steps)]
    chosen = chosen_by(index, size, exclude)
    for epoch in range(3):
        own = batches[epoch * order.steps_per_epoch : (epoch + 1) * order.steps_per_epoch]
        assert Counter(sample for ids, _ in own for sample in ids if sample != -1) == Counter(chosen)
        assert {number for _, passes in own for number in passes} == {epoch}
        assert all(-1 not in ids for ids, _ in own[:-1])  # every batch but the last is full
        assert [order.epoch(epoch * order.steps_per_epoch + step) for step in range(len(own))] == [epoch] * len(own)


@pytest.mark.parametrize("owned", [(0, 64), (0, 32), (16, 24), (0, 1), (3, 21)])
def test_window_is_what_waits_at_most(make_index, owned):
    """Whole lanes of equal width reach the number; partial lanes come near and do not exceed it."""
    order = SampleOrder(make_index([3000] * 7), batch_size=64, lanes=16, block=96)
    held, most = 0, 0
    for step in range(order.steps_per_epoch):
        held += sum(len(ids) for _, ids in order.blocks_entered(step, *owned))
        most = max(most, held)
        held -= int((order.slots(step, *owned) != -1).sum())
    assert held == 0
    assert most <= order.most_waiting(*owned)
    if owned[0] % 4 == owned[1] % 4 == 0:
        assert most == order.most_waiting(*owned)
    assert most >= 0.9 * order.most_waiting(*owned)


def test_window_in_numbers(make_index):
    """About half a block a lane, for one worker with all lanes or each of eight; a whole block for a single lane."""
    order = SampleOrder(make_index([1_281_167]), batch_size=4096)
    assert 64 * 1024 / 2 < order.most_waiting(0, 4096) < 64 * 1024 / 2 + 4096
    for start in range(0, 4096, 512):
        assert 8 * 1024 / 2 < order.most_waiting(start, start + 512) < 8 * 1024 / 2 + 1024
    assert order.most_waiting(0, 64) == 1024


def test_lanes_enter_their_blocks_in_turn(make_index):
    """Of 8 lanes with blocks of 64 and 4 samples a step, every second step one begins a block, and never two."""
    order = SampleOrder(make_index([1000] * 8), batch_size=32, lanes=8, block=64)
    entered = [sum(len(ids) for _, ids in order.blocks_entered(step, 0, 32)) for step in range(1, 200)]
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


def steps_of(order: SampleOrder, epoch: int) -> np.ndarray:
    """The step of the epoch at which each sample comes: int64 (num_samples,)."""
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    ids = np.concatenate([order.slots(step, 0, order.batch_size) for step in steps])
    found = np.full(order.num_samples, -1)
    found[ids[ids != -1]] = np.repeat(np.arange(len(steps)), order.batch_size)[ids != -1]
    return found


def test_no_position_bias(make_index):
    """The tenth of an epoch in which a sample comes: over 60 epochs as uniform as in a free shuffle, for all of 4,000.

    Chi-squared with 9 degrees of freedom, which is 9 on average. With 4,000 samples the average is within 0.3 of its
    expectation even if neighbours move together, and the largest stays below the 99.99999 % quantile, 51.
    """
    order = SampleOrder(make_index([400] * 10), seed=5, batch_size=32, lanes=4, block=32)
    tenth = np.arange(order.steps_per_epoch) * 10 // order.steps_per_epoch
    expected = np.bincount(np.repeat(tenth, 32)[: order.num_samples]) / order.num_samples * 60
    generator = np.random.default_rng(0)
    seen, ideal = np.zeros((2, order.num_samples, 10))
    samples = np.arange(order.num_samples)
    for epoch in range(60):
        seen[samples, tenth[steps_of(order, epoch)]] += 1
        ideal[samples, tenth[generator.permutation(order.num_samples) // 32]] += 1
    ours, free = (((counts - expected) ** 2 / expected).sum(1) for counts in (seen, ideal))
    assert abs(ours.mean() - free.mean()) < 0.6
    assert max(ours.max(), free.max()) < 51


def test_neighbours_in_storage_spread_over_the_block(make_index):
    """The steps between two neighbours are those between two random places of a block: chi-squared, 63 degrees.

    A block of K samples is used in K/n steps of n samples. Two samples are d steps apart with the probability
    2 (K/n - d) n^2 / (K (K - 1)), or (n - 1) / (K - 1) for d = 0.
    """
    size, share = 256, 4
    order = SampleOrder(make_index([20 * size] * 8), seed=5, batch_size=share, lanes=1, block=size)
    rows = size // share
    apart = np.abs(np.diff(steps_of(order, 0)))
    apart = apart[apart < rows]  # 1 pair in K is in two blocks, and half of those are near each other
    probability = 2 * (rows - np.arange(rows)) * share**2 / (size * (size - 1))
    probability[0] = (share - 1) / (size - 1)
    assert probability.sum() == pytest.approx(1)
    expected = probability * len(apart)
    assert ((np.bincount(apart, minlength=rows) - expected) ** 2 / expected).sum() < 130  # 99.9999 % quantile: 128


def test_neighbours_spread_with_all_lanes(make_index):
    """With the default lanes, neighbours are K C / 3B steps apart on average; all but 1 pair in K at most K C / B."""
    order = SampleOrder(make_index([2000] * 100), seed=2, batch_size=256, block=256)
    assert order.lanes == 64
    apart = np.abs(np.diff(steps_of(order, 0)))
    assert np.mean(apart[apart <= 64]) == pytest.approx(64 / 3, rel=0.1)  # the last blocks of lanes are smaller
    assert (apart > 64).mean() < 2 / 256


def test_classes_of_a_batch_from_a_sorted_set(make_index):
    """1,000 classes of 200 images, class after class, in shards of 1,000. A free shuffle has 226 in a batch of 256.

    The order has 185: 64 lanes, each with about 3 of the 5 to 6 classes of its block. No shuffle has 2.
    """
    order = SampleOrder(make_index([1000] * 200), seed=1, batch_size=256)
    classes = [len(set((order.slots(step, 0, 256) // 200).tolist())) for step in range(0, order.steps_per_epoch, 9)]
    assert 175 < np.mean(classes) < 1000 * (1 - (1 - 1 / 1000) ** 256)
    assert min(classes) > 100


def test_several_orders_at_once_shuffle_no_block_twice(make_index):
    """Four sources of 64 lanes each, with readers 32 steps ahead: every block is shuffled once."""
    orders = [SampleOrder(make_index([1000] * count), seed=count, batch_size=256) for count in (300, 301, 302, 303)]
    block_permutation.cache_clear()
    for step in range(1000, 1100):
        for order in orders:
            order.slots(step, 0, 256)
            order.blocks_entered(step + 32, 0, 256, since=1000)
    staggers = [lane * 1024 // 64 for lane in range(64)]  # another order has the same sum
    blocks = sum((4 * 1132 - 1 + stagger) // 1024 - (4 * 1000 + stagger) // 1024 + 1 for stagger in staggers)
    assert block_permutation.cache_info().misses == 4 * blocks


@pytest.mark.parametrize(
    ("batch_size", "samples", "lanes"),
    [(4096, 10**6, 64), (100, 100, 64), (97, 10**6, 64), (24, 90, 24), (128, 10, 9), (6, 4, 3)],
)
def test_default_lanes(make_index, batch_size, samples, lanes):
    order = SampleOrder(make_index([samples]), batch_size=batch_size)
    assert order.lanes == lanes


@given(st.integers(1, 300), st.integers(1, 300))
def test_no_default_lane_is_empty(make_index, batch_size, samples):
    """In an epoch's first batch, every lane has a sample."""
    order = SampleOrder(make_index([samples]), batch_size=batch_size, block=7)
    ids = np.array(order.batch(0))
    edges = [lane * batch_size // order.lanes for lane in range(order.lanes)]
    assert (np.maximum.reduceat(ids, edges) >= 0).all()


def test_more_lanes_than_samples(make_index):
    order = SampleOrder(make_index([2]), batch_size=8, lanes=8)
    assert order.steps_per_epoch == 1
    assert sorted(order.batch(0)) == [-1] * 6 + [0, 1]


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([0, 0], {"batch_size": 4}, "no samples"),
        ([9], {"batch_size": 6, "lanes": 7}, "lanes 7: choose 1 to 6, the batch size"),
        ([9], {"batch_size": 6, "lanes": 0}, "lanes 0: choose 1 to 6"),
        ([9], {"batch_size": 6, "subset": 10}, "a subset of 10 samples out of 9"),
        ([9], {"batch_size": 6, "exclude": np.arange(9)}, "every selected sample is excluded"),
        ([9], {"batch_size": 6, "exclude": np.array([3, 9])}, "ids 3 to 9 are excluded, of 9 samples"),
        ([9], {"batch_size": 6, "exclude": np.array([-1])}, "ids -1 to -1 are excluded"),
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
    with pytest.raises(ValueError, match="step -1"):
        order.epochs(-1, 0, 1)
    for call in (order.slots, order.epochs, order.blocks_entered):
        with pytest.raises(ValueError, match="slots 2 to 5"):
            call(0, 2, 5)
    with pytest.raises(ValueError, match="slots 2 to 5"):
        order.most_waiting(2, 5)


def test_full_size(make_index):
    """303M samples in 30,000 shards: after a cold start, a late step needs no more function calls than an early one."""
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
