"""Randomness as arithmetic: every random choice of the data plane is a hash of what it is for.

SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) passes a counter
through a bijective 64-bit mixer. A library's generator would not do: the order of a run must be the same next year, on
another machine and with another numpy. So these lines never change. There is no hidden state: the numbers of step
1,000,000 take as long as those of step 1.
"""

from enum import IntEnum

import numpy as np

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio; it is odd, so the counter visits all 2^64 states
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB


class Purpose(IntEnum):
    """The first part of every key: choices of different purposes never share their randomness.

    A member may be added, but none may change: orders, augmentations and packed sets depend on the numbers.
    """

    SHARDS = 1
    BLOCK = 2
    AUGMENT = 3
    SUBSET = 4
    TURN = 5
    PACKING = 0x5041434B
    SHAPES = 0x53484150
    HOLDOUT = 0x484F4C44
    DROPOUT = 0x64726F70


def mix(state: int) -> int:
    """The SplitMix64 output after `state`: a bijection of the 64-bit integers."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * MULTIPLIER_1) & MASK
    z = ((z ^ (z >> 27)) * MULTIPLIER_2) & MASK
    return z ^ (z >> 31)


def key(*parts: int) -> int:
    """Hash a tuple of integers, such as (purpose, seed, epoch, lane, block), to 64 bits. Order matters."""
    state = 0
    for part in parts:
        state = mix(state ^ (part & MASK))
    return state


def stream(seed: int, count: int) -> np.ndarray:
    """The first `count` outputs of the SplitMix64 generator seeded with `seed`: uint64 (count,), all different."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MULTIPLIER_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MULTIPLIER_2)
        return z ^ (z >> np.uint64(31))


def permutation(seed: int, count: int) -> np.ndarray:
    """A uniformly random permutation of range(count): int64 (count,).

    The outputs of `stream` are distinct: a bijection of distinct counters. So sorting them has no ties, and every
    sorting algorithm gives the same result.
    """
    return np.argsort(stream(seed, count))


class Draws:
    """Successive draws from the stream of one key, for choices that need a few numbers and no array."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def integer(self, bound: int) -> int:
        """Uniform in 0 .. bound-1. The bias of this reduction, multiply and shift, is below bound / 2^64."""
        return (self._next() * bound) >> 64

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high), with the 53 bits of a double."""
        return low + (high - low) * ((self._next() >> 11) * 2.0**-53)

    def _next(self) -> int:
        value = mix(self._state)
        self._state = (self._state + GAMMA) & MASK
        return value
