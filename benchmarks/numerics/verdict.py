"""Whether two ways to compute a step give the same training: arithmetic on loss curves.

For each seed s there are two curves, losses by step, of the reference and of the variant. With L the mean loss over the
last quarter of the steps, the effect of a variant is

    d_s = L(variant, s) - L(reference, s)

Since the seed is the same, the effects of initialisation, order, augmentation and dropout cancel. d_s is compared with
two yardsticks:

    noise     standard deviation of L(reference, s) over the seeds: the effect of another seed
    rounding  root mean square over s of L(moved, s) - L(reference, s), where `moved` is the reference with initial
              weights that differ by one unit in the last place: the effect of rounding in float32

A variant is within noise if |d_s| <= noise for every seed. It then differs from the reference no more than the
reference with another seed does.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Curves = Mapping[int, Sequence[float]]
"""Seed -> loss of each step."""


def final_loss(curve: Sequence[float]) -> float:
    """The mean over the last quarter of the steps."""
    return statistics.mean(curve[-(len(curve) // 4) :])


def differences(curves: Curves, reference: Curves) -> list[float]:
    """d_s of each seed."""
    return [final_loss(curves[seed]) - final_loss(reference[seed]) for seed in reference]


@dataclass(frozen=True)
class Yardsticks:
    """The scales with which differences are compared."""

    noise: float
    rounding: float

    @classmethod
    def of(cls, reference: Curves, moved: Curves) -> "Yardsticks":
        losses = [final_loss(curve) for curve in reference.values()]
        rounding = math.sqrt(statistics.mean(d * d for d in differences(moved, reference)))
        # After a few steps, rounding may have no effect yet. The least scale is the resolution of float32.
        return cls(noise=statistics.stdev(losses), rounding=max(rounding, statistics.mean(losses) * 2.0**-23))


def compare(curves: Curves, reference: Curves, yardsticks: Yardsticks) -> dict[str, Any]:
    """The fields of a row that describe the loss. All losses must be finite."""
    found = differences(curves, reference)
    largest = max(map(abs, found))
    return {
        "loss": statistics.mean(map(final_loss, curves.values())),
        "difference": statistics.mean(found),
        "largest_difference": largest,
        "differences": found,
        "running_difference": max(running_difference(curves[seed], reference[seed]) for seed in reference),
        "noise": yardsticks.noise,
        "of_noise": largest / yardsticks.noise,
        "of_rounding": largest / yardsticks.rounding,
        "within_noise": largest <= yardsticks.noise,
    }


def running_difference(curve: Sequence[float], reference: Sequence[float]) -> float:
    """The largest difference, at any step, of the mean over the previous tenth of the steps."""
    window = max(1, len(reference) // 10)
    sums = [0.0, *itertools.accumulate(a - b for a, b in zip(curve, reference, strict=True))]
    return max(abs(after - before) / window for before, after in zip(sums, sums[window:], strict=False))
