"""McNemar's exact test against SciPy's binomial test, and the bootstrap against one over the images themselves."""

import numpy as np
import pytest
from scipy.stats import binomtest

from orchestrator.training.evaluation.paired import compare, mcnemar


@pytest.mark.parametrize(
    ("a", "b"), [(0, 0), (0, 1), (1, 0), (3, 3), (0, 8), (5, 16), (120, 150), (30_000, 30_500), (1, 40_000)]
)
def test_p_is_that_of_the_binomial_test(a: int, b: int) -> None:
    expected = binomtest(min(a, b), a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_two_models_on_the_same_images() -> None:
    rng = np.random.default_rng(3)
    first = rng.random(800) < 0.8
    second = np.where(rng.random(800) < 0.85, first, ~first)
    found = compare(first, second)
    assert found.only_first == sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    assert found.only_second == sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    assert found.difference == pytest.approx(first.mean() - second.mean())
    drawn = [float((first[chosen].astype(int) - second[chosen]).mean()) for chosen in rng.integers(0, 800, (4000, 800))]
    np.testing.assert_allclose((found.low, found.high), np.quantile(drawn, [0.025, 0.975]), atol=0.004)
    assert found.p < 0.01
    same = compare(first, first)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="at least one"):
        compare(np.ones(0, bool), np.ones(0, bool))
