"""Counts and rates against scikit-learn and against loops over the images."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from orchestrator.training.evaluation.metrics import (
    Confusion,
    calibration_bins,
    class_accuracies,
    confusion_matrix,
    expected_calibration_error,
    standard_error,
    worst_pairs,
)

CLASSES = 7


@pytest.fixture(scope="module")
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of classes 0 to 5, so that class 6 has no images, and logits that are right more often than by chance."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES - 1, (500,), generator=generator)
    logits = torch.randn(500, CLASSES, generator=generator) * 2
    logits[torch.arange(500), labels] += 2
    return labels, logits


def test_confusion_matrix_and_class_accuracies(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    labels, logits = answers
    predictions = logits.argmax(1)
    matrix = confusion_matrix(labels, predictions, CLASSES)
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(CLASSES))
    assert matrix.tolist() == expected.tolist()
    halves = confusion_matrix(labels[:200], predictions[:200], CLASSES)
    halves += confusion_matrix(labels[200:], predictions[200:], CLASSES)
    assert torch.equal(halves, matrix)

    found = class_accuracies(matrix.sum(1).numpy(), matrix.diagonal().numpy())
    recall = sklearn_metrics.recall_score(
        labels, predictions, labels=range(CLASSES), average=None, zero_division=np.nan
    )
    np.testing.assert_allclose(found, recall)
    assert np.isnan(found[6])


def test_worst_pairs_are_the_most_frequent_mistakes() -> None:
    matrix = np.array([[9, 2, 0], [5, 50, 2], [1, 0, 0]])
    assert worst_pairs(matrix, 3) == [Confusion(1, 0, 5), Confusion(0, 1, 2), Confusion(1, 2, 2)]
    assert len(worst_pairs(matrix, 100)) == 4, "no pair without images"
    assert matrix[0, 0] == 9, "the matrix is the caller's"


def test_calibration_error_against_a_loop(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    labels, logits = answers
    confidences, predictions = logits.softmax(1).max(1)
    right = predictions == labels
    found = calibration_bins(confidences[:100], right[:100]) + calibration_bins(confidences[100:], right[100:])
    error = 0.0
    for m in range(15):
        inside = [i for i, c in enumerate(confidences.double().tolist()) if m / 15 < c <= (m + 1) / 15]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            confidence = sum(float(confidences[i]) for i in inside) / len(inside)
            error += len(inside) / 500 * abs(accuracy - confidence)
            assert found[0, m] == len(inside)
    assert expected_calibration_error(found.numpy()) == pytest.approx(error, abs=1e-12)
    assert 0.01 < error < 0.5


def test_edges_of_the_bins() -> None:
    confidences = torch.tensor([0.0, 1.0, 1 / 15, float("nan")], dtype=torch.float64)
    found = calibration_bins(confidences, torch.tensor([False, True, True, True]))
    assert found[0].tolist() == [2.0, *[0.0] * 13, 1.0]
    assert found[2].tolist() == [1.0, *[0.0] * 13, 1.0]
    assert expected_calibration_error(calibration_bins(torch.ones(3), torch.ones(3, dtype=torch.bool)).numpy()) == 0
    assert math.isnan(expected_calibration_error(np.zeros((3, 15))))


def test_standard_error_is_the_spread_of_an_accuracy() -> None:
    rng = np.random.default_rng(0)
    accuracies = rng.binomial(400, 0.8, size=20_000) / 400
    assert standard_error(0.8, 400) == pytest.approx(accuracies.std(), rel=0.02)
    assert standard_error(1.0, 10) == 0
    assert math.isnan(standard_error(0.0, 0))
