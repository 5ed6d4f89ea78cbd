"""k nearest neighbours on frozen features, as people compare self-supervised networks (DINO, arXiv 2104.14294, 4.1).

An image gets the class with the most votes of its k nearest training images. Features are divided by their length; a
neighbour at cosine s has exp(s / temperature) votes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from orchestrator.job.choices import FeatureSet
from orchestrator.training.evaluators.features import Features, on_each_set, usable
from orchestrator.training.measurement import Measurement

TEST_BLOCK, TRAIN_BLOCK = 1024, 16384  # images that are compared at once: 128 MiB of cosines


def measure(
    measurement: Measurement, *, sets: Mapping[str, FeatureSet], k: Sequence[int], temperature: float
) -> dict[str, float]:
    """Accuracy on each set with the k nearest training images: `SET/k20`. Collective."""
    device = measurement.engine.device
    return on_each_set(measurement, sets, lambda train, test: _accuracies(train, test, k, temperature, device))


def knn_predictions(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, ks: Sequence[int], temperature: float = 0.07
) -> Tensor:
    """The class of each test image by its nearest training images, int64 (len(ks), M).

    Equal votes: the class with the lower number.

    Args:
        train: (N, D) features.
        labels: int64 (N,), class numbers below `num_classes`.
        test: (M, D) features.
        num_classes: K.
        ks: numbers of neighbours; one above N stands for N.
        temperature: of the votes.
    """
    predictions = []
    for block in test.split(TEST_BLOCK):
        cosines, neighbours = _nearest(_unit(block), train, min(max(ks), len(train)))
        votes = (cosines / temperature).exp()
        of_class = labels[neighbours]
        scores = torch.zeros(len(ks), len(block), num_classes, dtype=torch.float64, device=test.device)
        for row, k in enumerate(ks):
            scores[row].scatter_add_(1, of_class[:, :k], votes[:, :k])
        predictions.append(scores.argmax(-1))
    return torch.cat(predictions, dim=1)


def _nearest(test: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines with the k nearest training images and their places, both (M, k), the nearest first."""
    cosines = torch.empty(len(test), 0, dtype=torch.float64, device=test.device)
    places = torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for first, block in _blocks(train):
        here, where = (test @ _unit(block).T).topk(min(k, len(block)), dim=1)
        cosines, places = torch.cat([cosines, here], dim=1), torch.cat([places, where + first], dim=1)
        cosines, best = cosines.topk(min(k, cosines.shape[1]), dim=1)
        places = places.gather(1, best)
    return cosines, places


def _blocks(train: Tensor) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(train), TRAIN_BLOCK):
        yield first, train[first : first + TRAIN_BLOCK]


def _unit(features: Tensor) -> Tensor:
    """The features in float64, divided by their length."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def _accuracies(
    train: Features, test: Features, ks: Sequence[int], temperature: float, device: torch.device
) -> dict[str, float]:
    if not usable(train, test):
        return {f"k{k}": math.nan for k in ks}
    found = knn_predictions(
        torch.from_numpy(train.values).to(device),
        torch.from_numpy(train.labels).to(device),
        torch.from_numpy(test.values).to(device),
        train.num_classes,
        ks,
        temperature,
    )
    right = found.cpu().numpy() == test.labels
    return {f"k{k}": float(of_k.mean()) for k, of_k in zip(ks, right, strict=True)}
