"""Curves that jump, and those that only look like it."""

import math
import random

import pytest

from orchestrator.history.spikes import FEWEST, WINDOW, SpikeDetector, Spikes


def test_a_lone_jump_is_a_spike() -> None:
    noise = random.Random(0)
    detector = SpikeDetector()
    falling = [5.0 * 0.999**i + noise.gauss(0, 0.02) for i in range(400)]
    marked = [i for i, value in enumerate(falling) if detector.add(value) is not None]
    assert marked == []
    assert detector.add(5.0) == pytest.approx(5.0 * 0.999**368, rel=0.02)
    assert detector.add(falling[-1]) is None


def test_few_points_flat_curves_and_dips_are_no_spikes() -> None:
    detector = SpikeDetector()
    assert all(detector.add(value) is None for value in [1.0, 1000.0] * (FEWEST // 2)), "too few to judge by"
    detector = SpikeDetector()
    for _ in range(WINDOW):
        detector.add(2.0)
    assert detector.add(2.1) is None, "less than a tenth above"
    assert detector.add(0.1) is None
    assert detector.add(math.inf) is None
    assert detector.add(math.nan) is None
    assert detector.add(2.3) == 2.0
    assert [detector.add(4.0) for _ in range(WINDOW)].count(None) >= WINDOW // 2 - 3, "a level that stays is no spike"


def test_each_curve_is_judged_by_its_own_past() -> None:
    spikes = Spikes()
    for step in range(FEWEST):
        assert spikes.mark(step, {"train/loss": 2.0, "train/gradient_norm": 10.0}) == ({}, {})
    marks, lines = spikes.mark(FEWEST, {"train/loss": 9.0, "train/gradient_norm": 9.0})
    assert marks == {"train/loss_spike": 1.0}
    assert lines == {"train/loss": f"step {FEWEST}: train/loss spikes: 9, usually 2"}
