"""Numbers that say how well a classifier did on a set, from counts: pure functions, the same for any number of workers.

Shapes: B images, K classes, M bins of confidence.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WRONG, RIGHT, NOT_JUDGED = 0, 1, 2  # answers to an image
BINS = 15  # of confidence (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    truth: int
    prediction: int
    images: int


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy that was measured on independent images: sqrt(p (1 - p) / n). NaN without images."""
    return math.sqrt(accuracy * (1.0 - accuracy) / images) if images else math.nan


def calibration_bins(confidences: Tensor, right: Tensor) -> Tensor:
    """Images, the sum of their confidences, and those that are right, of each bin of confidence: (3, M) float64.

    Bin m holds the confidences above m / M and up to (m + 1) / M; 0 belongs to the first bin. NaN counts in none.

    Args:
        confidences: (B,), probabilities of the predicted classes.
        right: bool (B,).
    """
    known = ~confidences.isnan()
    confidences, right = confidences[known].double(), right[known]
    bins = (confidences * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    table = torch.zeros(3, BINS, dtype=torch.float64, device=confidences.device)
    for row, values in enumerate((torch.ones_like(confidences), confidences, right.double())):
        table[row].index_add_(0, bins, values)
    return table


def expected_calibration_error(bins: np.ndarray) -> float:
    """The mean over the images of | accuracy of the bin - confidence of the bin |, from `calibration_bins` (3, M)."""
    images, confidence, right = bins
    total = float(images.sum())
    return float(np.abs(right - confidence).sum()) / total if total else math.nan


def confusion_matrix(truth: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Images of class i that were taken for class j: (K, K) int64. Arguments: int64 (B,), below K."""
    places = truth * num_classes + predictions
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def class_accuracies(images: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The share of the images of each class that is right, (K,) float64; NaN for a class without images.

    Args:
        images, right: (K,) counts.
    """
    shares: np.ndarray = np.full(len(images), np.nan)
    np.divide(right, images, out=shares, where=images > 0)
    return shares


def worst_pairs(matrix: np.ndarray, most: int) -> list[Confusion]:
    """The most frequent confusions of a confusion matrix (K, K), at most `most` of them.

    Equal ones are in order of the class and of what it is taken for.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    flat = wrong.ravel()
    order = np.argsort(-flat, kind="stable")[:most]
    found = (Confusion(*divmod(int(place), len(matrix)), int(flat[place])) for place in order)
    return [pair for pair in found if pair.images]
