"""The images of a source that are held out for measuring: chosen by a seed, in proportion from every class."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.splitmix import Purpose, key, permutation

UNLABELLED = -1


class Holdout(NamedTuple):
    """How many images to hold out: a number, or a percentage of all."""

    number: float
    is_percentage: bool = False

    @classmethod
    def parse(cls, text: str) -> "Holdout":
        """From `N` or `P%`.

        Raises:
            ValueError: another text.
        """
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
        if match is None or (match[2] and float(match[2]) >= 100):
            raise ValueError(f"{text!r} is neither a number of images nor a percentage below 100%")
        return cls(float(match[2]), True) if match[2] else cls(int(match[1]))

    def of(self, total: int) -> int:
        """The number of images, out of so many.

        Raises:
            DataError: it is 0, but the percentage is not.
        """
        count = round(total * self.number / 100) if self.is_percentage else int(self.number)
        if not count and self.number:
            raise DataError(f"--holdout {self.number:g}% of {total:,} images is none: give a number of images, or 0")
        return count


def hold_out(labels: Sequence[Sequence[int]], count: int, seed: int = 0) -> np.ndarray:
    """Which images are held out: bool (n,), `count` of them true.

    Each class gives in proportion to its images, and keeps at least one. An image with several labels counts for the
    rarest of them.

    Raises:
        DataError: so many cannot be held out.
    """
    left = Counter(label for image in labels for label in set(image))
    strata = [min(image, key=lambda label: (left[label], label), default=UNLABELLED) for image in labels]
    sizes = Counter(strata)
    most = {stratum: size - (stratum != UNLABELLED) for stratum, size in sizes.items()}
    quotas = _quotas(sizes, most, count)
    held = np.zeros(len(labels), bool)
    order = permutation(key(Purpose.HOLDOUT, seed), len(labels)).tolist()
    for limited in (True, False):  # then without quotas, if images with several labels left some unfilled
        for place in order:
            stratum, image = strata[place], set(labels[place])
            if count == 0 or held[place] or (limited and quotas[stratum] == 0) or any(left[one] == 1 for one in image):
                continue
            held[place] = True
            left.subtract(image)
            quotas[stratum] -= 1
            count -= 1
    if count:
        raise DataError(
            f"cannot hold out {held.sum() + count:,} of {len(labels):,} images: each class keeps one to train on, so "
            f"{held.sum():,} are the most; give a smaller --holdout"
        )
    return held


def _quotas(sizes: Mapping[int, int], most: Mapping[int, int], count: int) -> dict[int, int]:
    """How many each stratum gives: in proportion, by largest remainder, and not more than its `most`."""
    total = sum(sizes.values())
    quotas = {one: min(count * size // total, most[one]) for one, size in sizes.items()}
    while (missing := count - sum(quotas.values())) > 0:
        open_ones = [one for one in quotas if quotas[one] < most[one]]
        if not open_ones:
            break
        open_ones.sort(key=lambda one: (quotas[one] * total - count * sizes[one], one))
        for one in open_ones[:missing]:
            quotas[one] += 1
    return quotas
