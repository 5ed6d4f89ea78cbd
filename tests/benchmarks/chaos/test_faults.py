"""The schedule of the chaos benchmark."""

import itertools
from collections import Counter

import pytest

from benchmarks.chaos.faults import CONTINUED, KINDS, RESIZE, SIZES, START_SIZE, schedule


def test_every_kind_and_every_size_comes_in_an_order_of_the_seed() -> None:
    events = schedule(faults=100, steps=3000, seed=3, first=40, resizes=10)
    names = [event.kind for event in events if event.kind != RESIZE]
    assert len(names) == 100
    assert set(names[: len(KINDS)]) == set(KINDS)
    kinds = Counter(names)
    assert sum(kinds[kind] for kind in CONTINUED) > 60
    sizes = [START_SIZE, *(event.workers for event in events if event.kind == RESIZE)]
    assert len(sizes) == 11
    assert set(sizes) == set(SIZES)
    assert all(before != after for before, after in itertools.pairwise(sizes))
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))
    assert steps[0] >= 40
    assert steps[-1] < 3000
    assert events == schedule(100, 3000, 3, 40, resizes=10)
    assert events != schedule(100, 3000, 4, 40, resizes=10)


def test_kinds_can_be_left_out() -> None:
    events = schedule(10, 400, 0, 40, kinds=["worker", "storage"])
    assert {event.kind for event in events} == {"worker", "storage", RESIZE}
    assert {event.workers for event in events if event.kind == RESIZE} == {1, 3}
    with pytest.raises(ValueError, match="too few"):
        schedule(25, 80, 0, 40)
