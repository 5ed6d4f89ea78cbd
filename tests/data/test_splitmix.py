import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.splitmix import Draws, key, mix, permutation, stream

U64 = st.integers(0, 2**64 - 1)


def test_published_test_vector():
    """First outputs for seed 1234567, as printed on Rosetta Code (Pseudo-random numbers/Splitmix64)."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert stream(1234567, 5).tolist() == expected
    draws = Draws(1234567)
    assert [draws.integer(2**64) for _ in range(5)] == expected


@given(U64)
def test_scalar_and_vector_agree(seed: int):
    assert int(stream(seed, 1)[0]) == mix(seed)


@given(U64, st.integers(0, 300))
def test_permutation_sorts_by_hash(seed: int, count: int):
    hashes = [int(value) for value in stream(seed, count)]
    assert permutation(seed, count).tolist() == sorted(range(count), key=hashes.__getitem__)


def test_key_depends_on_every_part_and_on_order():
    tuples = {(1, 2, 3), (1, 3, 2), (2, 1, 3), (0, 2, 3), (1, 2, 4), (1, 2), (1, 2, 3, 0), (0, 1, 2, 3), (-1, 2, 3)}
    assert len({key(*parts) for parts in tuples}) == len(tuples)


@pytest.mark.parametrize("count", [3, 5])
def test_permutations_are_uniform(count: int):
    """Chi-squared over all count! permutations: the 99.9999 % quantiles for 5 and 119 degrees of freedom."""
    trials = 6_000
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(trials):
        order = tuple(permutation(key(9, seed), count).tolist())
        seen[order] = seen.get(order, 0) + 1
    cells = {3: 6, 5: 120}[count]
    expected = trials / cells
    chi2 = sum((seen_times - expected) ** 2 / expected for seen_times in seen.values()) + (cells - len(seen)) * expected
    assert chi2 < {3: 36, 5: 207}[count]


@given(U64, st.integers(1, 1000))
def test_draws_stay_in_range(seed: int, bound: int):
    draws = Draws(seed)
    assert 0 <= draws.integer(bound) < bound
    assert 0.75 <= draws.uniform(0.75, 4 / 3) < 4 / 3


def test_draws_are_uniform():
    draws = Draws(key(4, 2))
    values = np.array([draws.uniform(0, 1) for _ in range(20_000)])
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 55  # chi-squared, 19 degrees of freedom, 99.998 %
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
