"""Two models on the same images: is one better, or is the difference chance?"""

import math
from typing import NamedTuple

import numpy as np

DRAWS = 10_000  # of the bootstrap
CONFIDENCE = 0.95


class Paired(NamedTuple):
    """The comparison of a first model with a second.

    Attributes:
        only_first, only_second: images that only this model answers rightly.
        difference: accuracy of the first less that of the second.
        low, high: the difference's 95 % interval by bootstrap.
        p: of McNemar's exact test, two-sided: how often chance alone makes a difference at least as large.
    """

    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Paired:
    """Compare the answers of two models.

    Args:
        first, second: bool (N,): whether the model answers each image rightly, in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: the answers are not of the same images, or there are none.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"answers to {first.shape} and {second.shape} images; expected the same images, at least one")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = bootstrap(only_first, only_second, len(first), seed)
    difference = (only_first - only_second) / len(first)
    return Paired(only_first, only_second, difference, low, high, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test: 2 P(X <= the smaller count), X binomial with n and 1/2, at most 1.

    Args:
        only_first, only_second: images that only one of two models answers rightly.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)])
    largest = float(logs.max())
    tail = math.exp(largest - n * math.log(2)) * float(np.exp(logs - largest).sum())
    return min(1.0, 2.0 * tail)


def bootstrap(only_first: int, only_second: int, images: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies, from 10,000 draws of all images with replacement.

    Only the counts matter: an image counts 1, -1 or 0, so a draw is one of a multinomial distribution.

    Args:
        only_first, only_second: images that only one of the two models answers rightly.
        images: all.
        seed: of the draws.
    """
    shares = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=DRAWS)
    differences = (drawn[:, 0] - drawn[:, 1]) / images
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
