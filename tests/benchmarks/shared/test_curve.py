"""A curve whose answers are known."""

from benchmarks.shared.curve import Curve


def test_the_highest_step_at_a_time() -> None:
    """A step a second to step 30, then 25 s without a new step, and on at a step a second."""
    times = [float(second) for second in (*range(1, 31), *range(56, 86))]
    curve = Curve(list(range(1, 61)), times)
    assert [curve.peak(time) for time in (0.5, 30.5, 44.0, 56.5)] == [0, 30, 30, 31]


def test_the_mean_time_of_a_step() -> None:
    assert Curve([1, 2, 3], [0.0, 1.0, 4.0]).seconds_a_step() == 2
