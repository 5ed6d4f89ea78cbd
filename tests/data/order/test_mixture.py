import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import DataError, Index, SampleOrder, Shard
from data.order.mixture import Mixture, shares
from data.shards.index import concatenate

source_strategy = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0),  # shards
    st.integers(1, 12),  # slots
    st.integers(1, 12),  # lanes, at most the slots
    st.integers(1, 30),  # block
)

# Computed once, by the obvious implementation in test_sample_order.py: 7 of 10 slots from 23 samples in four shards,
# and 3 from 9 samples, whose ids begin at 23 and whose second pass begins at step 3.
FROZEN = [[17, 20, 0, 1, 5, 7, 6, 31, 25, 23], [-1, -1, 15, -1, 16, -1, -1, 27, 29, 28]]


def mix(make_index, sources, seed: int = 0) -> tuple[Mixture, list[SampleOrder], list[int]]:
    orders = [
        SampleOrder(make_index(counts), seed=seed, batch_size=slots, lanes=min(lanes, slots), block=block)
        for counts, slots, lanes, block in sources
    ]
    firsts = list(itertools.accumulate([0, *(sum(counts) for counts, *_ in sources)]))
    return Mixture(list(zip(orders, firsts[:-1], strict=True))), orders, firsts


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(source_strategy, min_size=1, max_size=4), st.integers(0, 99))
def test_each_source_exactly_once_a_pass_through_restarts(make_index, train, data, sources, seed):
    """By 1 to 8 workers, with another number after each restart at a random step. Each source has its own passes."""
    mixture, orders, firsts = mix(make_index, sources, seed)
    steps = min(2 * max(order.steps_per_epoch for order in orders) + 1, 60)
    restarts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=2)))
    batches = []
    for first, last in itertools.pairwise([0, *restarts, steps]):
        batches += train(mixture, first, last, data.draw(st.integers(1, 8)))
    assert [ids for ids, _ in batches] == [mixture.batch(step) for step in range(steps)]
    edges = list(itertools.accumulate([0, *(slots for _, slots, *_ in sources)]))
    places = zip(itertools.pairwise(firsts), itertools.pairwise(edges), strict=True)
    for order, ((first, end), (begin, stop)) in zip(orders, places, strict=True):
        passes: dict[int, Counter[int]] = {}
        for step, (ids, numbers) in enumerate(batches):
            assert set(numbers[begin:stop]) == {order.epoch(step)}
            passes.setdefault(order.epoch(step), Counter()).update(i for i in ids[begin:stop] if i != -1)
        for number, counts in passes.items():
            whole = (number + 1) * order.steps_per_epoch <= steps
            assert set(counts.values()) <= {1}
            assert set(counts) == set(range(first, end)) if whole else set(counts) <= set(range(first, end))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(source_strategy, min_size=1, max_size=4), st.integers(0, 500))
def test_any_slots_are_those_of_the_sources_side_by_side(make_index, data, sources, step):
    mixture, orders, firsts = mix(make_index, sources)
    expected = [
        i if i == -1 else first + i for order, first in zip(orders, firsts, strict=False) for i in order.batch(step)
    ]
    assert mixture.batch(step) == expected
    assert mixture.batch_size == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    own = mixture.slots(step, start, stop)
    assert own.dtype == mixture.epochs(step, start, stop).dtype == np.int64
    assert own.tolist() == expected[start:stop]


def test_ids_are_those_of_the_joined_index(make_index):
    """The joined index finds a sample of the mixture in the shard of its own source."""
    sources = [([5, 9, 2, 7], 7, 2, 4), ([4, 5], 3, 1, 4)]
    mixture, _, firsts = mix(make_index, sources)
    indexes = [
        Index(
            f"memory://{name}/index.json",
            tuple(Shard(f"{n}.tar", c, 0, "", np.zeros(0)) for n, c in enumerate(counts)),
            1,
            False,
        )
        for name, (counts, *_) in zip("ab", sources, strict=True)
    ]
    joint = concatenate(indexes)
    for step in range(8):
        for slot, sample in enumerate(mixture.batch(step)):
            if sample != -1:
                shard, position = joint.locate(sample)
                source = int(slot >= 7)
                number, expected = indexes[source].locate(sample - firsts[source])
                assert joint.shard_url(shard) == f"memory://{'ab'[source]}/{number}.tar"
                assert position == expected


def test_frozen_for_ever(make_index):
    mixture, _, _ = mix(make_index, [([5, 9, 2, 7], 7, 3, 4), ([4, 5], 3, 1, 4)], seed=42)
    assert [mixture.batch(step) for step in (0, 3)] == FROZEN


def test_epochs_of_the_whole_and_of_the_sources(make_index):
    """90 + 10 samples in batches of 8 + 2: an epoch of the whole is 10 steps; the small source passes twice in it."""
    mixture, orders, _ = mix(make_index, [([90], 8, 4, 16), ([10], 2, 1, 16)])
    assert (mixture.num_samples, mixture.batch_size, mixture.steps_per_epoch) == (100, 10, 10)
    assert [mixture.epoch(step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]
    assert mixture.epochs(9, 0, 10).tolist() == [0] * 8 + [1] * 2
    assert mixture.epochs(12, 6, 9).tolist() == [1, 1, 2]
    assert [(number, len(ids)) for number, ids in mixture.blocks_entered(5, 7, 10)] == [(1, 10)]
    assert mixture.most_waiting(0, 10) == orders[0].most_waiting(0, 8) + orders[1].most_waiting(0, 2)


def test_impossible_mixtures(make_index):
    with pytest.raises(DataError, match="at least one source"):
        Mixture([])
    mixture, _, _ = mix(make_index, [([9], 3, 1, 4), ([9], 2, 1, 4)])
    for call in (mixture.slots, mixture.epochs, mixture.blocks_entered):
        with pytest.raises(ValueError, match="slots 2 to 6 of a batch of 5"):
            call(0, 2, 6)
        with pytest.raises(ValueError, match="step -1"):
            call(-1, 0, 1)
    with pytest.raises(ValueError, match="step -1"):
        mixture.epoch(-1)
    assert mixture.slots(0, 3, 3).tolist() == mixture.epochs(0, 3, 3).tolist() == mixture.blocks_entered(0, 3, 3) == []


@pytest.mark.parametrize(
    ("weights", "batch_size", "expected"),
    [
        ([1], 7, [7]),
        ([0.7, 0.3], 10, [7, 3]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([0.3, 0.1, 0.6], 15, [5, 1, 9]),  # 4.5, 1.5 and 9: equal remainders, though not as binary fractions
        ([47, 16, 15.8, 12, 6.1, 3.1], 10, [5, 2, 1, 1, 1, 0]),  # a textbook's example; the last one is refused below
        ([300e6, 1.28e6], 4096, [4079, 17]),
        ([2, 0, 1], 3, [2, 0, 1]),
    ],
)
def test_shares(weights, batch_size, expected):
    if 0 in expected and weights[expected.index(0)]:
        with pytest.raises(
            DataError, match=r"source 6 of 6: weight 3.1 makes no slot of 10; a batch of 33 gives it one"
        ):
            shares(weights, batch_size)
        assert shares(weights, 33)[5] == 1
    else:
        assert shares(weights, batch_size) == expected


@given(st.lists(st.one_of(st.integers(0, 1000), st.floats(0.001, 1000)), min_size=1, max_size=6), st.integers(1, 5000))
def test_shares_are_the_proportions_rounded(weights, batch_size):
    assume(any(weights))
    try:
        slots = shares(weights, batch_size)
    except DataError as error:
        enough = int(str(error).split()[-4])
        source = int(str(error).split()[1]) - 1
        assert batch_size < enough
        assert Fraction(str(weights[source])) * enough >= sum(Fraction(str(weight)) for weight in weights)
        return
    total = sum(weights)
    assert sum(slots) == batch_size
    assert all(abs(slot - weight * batch_size / total) < 1 + 1e-9 for slot, weight in zip(slots, weights, strict=True))
    assert all((slot > 0) == (weight > 0) for slot, weight in zip(slots, weights, strict=True))


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan"), 1], [float("inf")]])
def test_impossible_weights(weights):
    with pytest.raises(DataError, match=r"weights \[.*choose numbers of at least 0, not all of them 0"):
        shares(weights, 8)


def test_the_share_of_slots_without_a_sample_is_that_of_a_count(make_index):
    sources = [([20, 3], 7, 3, 5), ([2], 5, 5, 5), ([12], 4, 1, 30)]
    mixture, orders, _ = mix(make_index, sources)
    for order in orders:
        slots = [sample for step in range(order.steps_per_epoch) for sample in order.batch(step)]
        assert order.masked_share == pytest.approx(slots.count(-1) / len(slots))
    steps = np.lcm.reduce([order.steps_per_epoch for order in orders])  # whole passes of every source
    slots = [sample for step in range(steps) for sample in mixture.batch(step)]
    assert mixture.masked_share == pytest.approx(slots.count(-1) / len(slots))
