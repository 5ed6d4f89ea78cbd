"""Logistic regression against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from orchestrator.training.evaluators import logistic
from orchestrator.training.evaluators.features import Features
from orchestrator.training.evaluators.logistic import choose, logistic_regression, predictions
from tests.orchestrator.training.evaluators.test_fewshot import clusters


def fitted(features: np.ndarray, labels: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(
        features.astype(np.float64), labels
    )


@pytest.mark.parametrize("c", [1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("classes", [3, 5])
def test_weights_are_those_of_scikit_learn(c: float, classes: int) -> None:
    values, labels = clusters(120, 8, classes, seed=1)
    values /= 10
    found = logistic_regression(torch.from_numpy(values), torch.from_numpy(labels), classes, c)
    expected = fitted(values, labels, c)
    torch.testing.assert_close(found[:-1], torch.from_numpy(expected.coef_.T), rtol=1e-4, atol=1e-6)
    bias = found[-1] - found[-1].mean()  # a constant in all classes changes nothing
    intercept = torch.from_numpy(expected.intercept_ - expected.intercept_.mean())
    torch.testing.assert_close(bias, intercept, rtol=1e-4, atol=1e-6)
    test = clusters(90, 8, classes, seed=2)[0] / 10
    assert predictions(torch.from_numpy(test), found).tolist() == expected.predict(test.astype(np.float64)).tolist()


def test_c_is_chosen_on_a_tenth_and_all_images_are_fitted() -> None:
    train, test = clusters(100, 12, 4, seed=1), clusters(77, 12, 4, seed=2)
    sets = Features(train[0] / 10, train[1], [], 4), Features(test[0] / 10, test[1], [], 4)
    cs = [10.0, 1e-4, 1e-2, 1.0]
    order = np.random.default_rng(5).permutation(100)
    scores = {
        c: fitted(sets[0].values[order[10:]], train[1][order[10:]], c).score(
            sets[0].values[order[:10]].astype(np.float64), train[1][order[:10]]
        )
        for c in sorted(cs)
    }
    best = max(scores, key=lambda c: scores[c])  # the first of equal ones: the smallest
    assert choose(torch.from_numpy(sets[0].values), torch.from_numpy(train[1]), 4, cs, 1000, 5) == best
    assert len(set(scores.values())) > 1

    found = logistic._accuracy(*sets, cs, 1000, 5, torch.device("cpu"))
    expected = fitted(sets[0].values, train[1], best).score(sets[1].values.astype(np.float64), test[1])
    assert found == {"top1": pytest.approx(expected), "C": best}
    sets[0].values[0] = np.nan
    assert np.isnan(logistic._accuracy(*sets, cs, 1000, 5, torch.device("cpu"))["top1"])
