"""The verdict of benchmarks/numerics against numbers by hand."""

import math

from benchmarks.numerics.verdict import Yardsticks, compare, final_loss, running_difference


def test_the_verdict_by_hand() -> None:
    """Curves of 8 steps, of which the last two count."""
    reference = {0: [9.0] * 6 + [1.0, 2.0], 1: [9.0] * 6 + [2.0, 3.0], 2: [9.0] * 6 + [3.0, 4.0]}
    assert [final_loss(curve) for curve in reference.values()] == [1.5, 2.5, 3.5]
    moved = {seed: [*curve[:-1], curve[-1] + 0.02] for seed, curve in reference.items()}
    yardsticks = Yardsticks.of(reference, moved)
    assert yardsticks.noise == 1.0  # of 1.5, 2.5, 3.5
    assert math.isclose(yardsticks.rounding, 0.01)
    assert Yardsticks.of(reference, reference).rounding == 2.5 * 2**-23  # the resolution of float32

    shifts = {0: 0.5, 1: -0.25, 2: 0.5}
    variant = {seed: [loss + shifts[seed] for loss in curve] for seed, curve in reference.items()}
    row = compare(variant, reference, yardsticks)
    assert row["differences"] == [0.5, -0.25, 0.5]
    assert (row["loss"], row["difference"], row["largest_difference"]) == (2.75, 0.25, 0.5)
    assert (row["noise"], row["of_noise"], row["running_difference"]) == (1.0, 0.5, 0.5)
    assert math.isclose(row["of_rounding"], 50.0)
    assert row["within_noise"]

    variant[1] = [loss - 1.01 for loss in reference[1]]  # one seed out of bounds is enough
    row = compare(variant, reference, yardsticks)
    assert abs(row["difference"]) < 0.01
    assert not row["within_noise"]


def test_the_running_difference_is_of_a_tenth_of_the_steps() -> None:
    reference = [1.0] * 20
    assert running_difference(reference, reference) == 0.0
    assert running_difference([*reference[:5], 3.0, 2.0, *reference[7:]], reference) == 1.5  # (2 + 1) / 2
    assert running_difference([*reference[:-1], 0.0], reference) == 0.5
