"""The schedule of the chaos benchmark."""

import itertools
from collections import Counter

import pytest

from benchmarks.chaos.kills import KINDS, RESIZE, SIZES, START_SIZE, schedule


def test_every_kind_and_every_size_comes_in_an_order_of_the_seed() -> None:
    events = schedule(kills=25, steps=1000, seed=3, first=40)
    kinds = Counter(event.kind for event in events if event.kind != RESIZE)
    assert kinds.total() == 25
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    sizes = [START_SIZE, *(event.workers for event in events if event.kind == RESIZE)]
    assert set(sizes) == set(SIZES)
    assert all(before != after for before, after in itertools.pairwise(sizes))
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))
    assert steps[0] >= 40
    assert steps[-1] < 1000
    assert events == schedule(25, 1000, 3, 40)
    assert events != schedule(25, 1000, 4, 40)
    assert {event.workers for event in schedule(3, 400, 0, 40) if event.kind == RESIZE} == {1, 3, 4}
    with pytest.raises(ValueError, match="too few"):
        schedule(25, 80, 0, 40)
