"""When two ways to compute a step train alike: the arithmetic of `benchmarks.numerics`, on loss curves.

A seed s has the reference's curve and the variant's, losses by step. With L the mean loss over the last quarter of the
steps, what a variant changes is

    d_s = L(variant, s) - L(reference, s)

which is what is left when the seed is the same: initialisation, order, augmentation and dropout cancel. It is held
against two yardsticks:

    noise     standard deviation of L(reference, s) over the seeds: what another seed does to the result
    rounding  root mean square over s of L(moved, s) - L(reference, s), where `moved` is the reference from weights that
              are one unit in the last place away: what float32 does to itself in so many steps

A variant is within noise if |d_s| <= noise for every seed: it is then no worse a copy of the reference than the
reference with another seed, each time that it was tried.
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
    """What differences are held against."""

    noise: float
    rounding: float

    @classmethod
    def of(cls, reference: Curves, moved: Curves) -> "Yardsticks":
        losses = [final_loss(curve) for curve in reference.values()]
        rounding = math.sqrt(statistics.mean(d * d for d in differences(moved, reference)))
        # In a few steps nothing grows: there the losses differ by what float32 can tell apart, or not at all.
        return cls(noise=statistics.stdev(losses), rounding=max(rounding, statistics.mean(losses) * 2.0**-23))


def compare(curves: Curves, reference: Curves, yardsticks: Yardsticks) -> dict[str, Any]:
    """The fields of a row that are about the loss. All losses are finite."""
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
    """The largest difference, at any step, of the mean over the tenth of the steps before it."""
    window = max(1, len(reference) // 10)
    sums = [0.0, *itertools.accumulate(a - b for a, b in zip(curve, reference, strict=True))]
    return max(abs(after - before) / window for before, after in zip(sums, sums[window:], strict=False))
