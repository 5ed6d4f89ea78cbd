"""Few-shot linear evaluation: a ridge regression on the features of a few images a class (ViT paper, section 4.1).

The authors' evaluator, in float64:

    x~ = (x - mean) / (std + 1e-5), with mean and std of the few images, and a last column of 100 in place of a bias
    y  = +1 for the class of an image, -1 for all others
    W  = argmin |x~ W - y|^2 + l2 |W|^2                                                      l2 = 1024

The few images are drawn by `numpy.random.default_rng(seed).permutation` within each class, in order of class, over the
images in order of their keys.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.job.choices import FeatureSet
from orchestrator.training.evaluators.features import Features, on_each_set, usable
from orchestrator.training.measurement import Measurement

BIAS = 100.0  # so large that the ridge hardly shrinks its weights
SMALLEST_STD = 1e-5


def measure(
    measurement: Measurement,
    *,
    sets: Mapping[str, FeatureSet],
    shots: Sequence[int],
    seeds: Sequence[int],
    l2: float,
) -> dict[str, float]:
    """Accuracy on each set: `SET/10shot`, the mean over the seeds, and with several seeds `SET/10shot_std`, the
    standard deviation of a seed. Collective.
    """
    return on_each_set(measurement, sets, lambda train, test: _accuracies(train, test, shots, seeds, l2))


def few_shot_weights(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = 1024.0) -> np.ndarray:
    """The weights of the regression, (D + 1, num_classes) float64, for whitened features with the constant 100 behind.

    Solved by the eigenvalues of the smaller of the two Gram matrices.

    Args:
        features: (N, D), as the network gives them. They are whitened here.
        labels: (N,), class numbers below `num_classes`.
        num_classes: K.
        l2: strength of the ridge, above 0.

    Raises:
        ValueError: no features, shapes that do not fit, a label that is no class, or an `l2` that is not positive.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or not len(x) or y.shape != x.shape[:1]:
        raise ValueError(f"features {x.shape} and labels {y.shape}: expected (N, D) and (N,) with N above 0")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels {y.min()} to {y.max()}: expected 0 to {num_classes - 1}")
    if not l2 > 0:
        raise ValueError(f"l2 {l2}: expected a number above 0")
    x = whitened(x, x)
    targets = np.full((len(y), num_classes), -1.0)
    targets[np.arange(len(y)), y] = 1.0
    if x.shape[0] >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ targets)
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ targets
    weights: np.ndarray = (left / (values + l2)) @ right
    return weights


def whitened(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features less the mean of `train` and divided by its standard deviation + 1e-5, with the constant 100 behind.

    Args:
        features: (M, D); `train`: (N, D).

    Returns:
        (M, D + 1) float64.
    """
    train = np.asarray(train, np.float64)
    white = (np.asarray(features, np.float64) - train.mean(0)) / (train.std(0) + SMALLEST_STD)
    return np.concatenate([white, np.full((len(white), 1), BIAS)], axis=1)


def draw(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Places of the images of each class, in the order in which they are drawn: the first k are the k shots.

    Args:
        labels: (N,), in order of the images' keys.
        num_classes: K.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == number)) for number in range(num_classes)]


def _accuracies(
    train: Features, test: Features, shots: Sequence[int], seeds: Sequence[int], l2: float
) -> dict[str, float]:
    if not usable(train, test):
        return dict.fromkeys([f"{k}shot" for k in shots], math.nan)
    by_shots: dict[int, list[float]] = {k: [] for k in shots}
    for seed in seeds:
        places = draw(train.labels, train.num_classes, seed)
        for k in shots:
            chosen = np.concatenate([of_class[:k] for of_class in places])
            few = train.values[chosen]
            weights = few_shot_weights(few, train.labels[chosen], train.num_classes, l2)
            right = np.argmax(whitened(test.values, few) @ weights, axis=1) == test.labels
            by_shots[k].append(float(right.mean()))
    metrics = {}
    for k, accuracies in by_shots.items():
        metrics[f"{k}shot"] = float(np.mean(accuracies))
        if len(accuracies) > 1:
            metrics[f"{k}shot_std"] = float(np.std(accuracies, ddof=1))
    return metrics
