"""Linear probe on frozen features: a softmax classifier for each learning rate of a grid, all trained in one pass.

DINO's probe (arXiv 2104.14294): SGD with momentum, no weight decay, cosine to 0, a batch's mean cross-entropy. A
learning rate of the grid is for 256 images: it is multiplied by batch / 256. Features are used as the network gives
them, without augmentation. Batches are taken from permutations of the training images, laid end to end.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orchestrator.job.choices import FeatureSet
from orchestrator.training.evaluators.features import Features, on_each_set, usable
from orchestrator.training.measurement import Measurement

RATE_IMAGES = 256  # the learning rates of the grid are for a batch of this many
INITIAL_STD = 0.01  # of the weights


class Schedule(NamedTuple):
    """How a grid is trained.

    Attributes:
        lrs: learning rates for 256 images.
        steps: updates.
        batch_size: images in an update.
        momentum: of SGD.
        seed: of the initial weights and the batches.
    """

    lrs: Sequence[float]
    steps: int
    batch_size: int
    momentum: float
    seed: int


def measure(
    measurement: Measurement,
    *,
    sets: Mapping[str, FeatureSet],
    lrs: Sequence[float],
    steps: int,
    batch_size: int,
    momentum: float,
    seed: int,
) -> dict[str, float]:
    """Accuracy on each set: `SET/lr_0.001` of every learning rate; `SET/top1`, the best; `SET/lr`, its rate.

    The best is chosen on the test images, as DINO reports it. Collective.
    """
    schedule, device = Schedule(lrs, steps, batch_size, momentum, seed), measurement.engine.device
    return on_each_set(measurement, sets, lambda train, test: _accuracies(train, test, schedule, device))


def probe_grid(features: Tensor, labels: Tensor, num_classes: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The classifiers of all learning rates: weights (G, D, K) and biases (G, K), float64, on the features' device.

    Args:
        features: (N, D).
        labels: int64 (N,), class numbers below `num_classes`.
        num_classes: K.
        schedule: G learning rates, steps, batches.
    """
    device, grid = features.device, len(schedule.lrs)
    start = initial_weights(features.shape[1], num_classes, schedule.seed).to(device)
    weights = start.expand(grid, -1, -1).clone()
    biases = torch.zeros(grid, num_classes, dtype=torch.float64, device=device)
    speed = torch.zeros_like(weights), torch.zeros_like(biases)
    rates = torch.tensor(schedule.lrs, dtype=torch.float64, device=device) * schedule.batch_size / RATE_IMAGES

    for step, places in enumerate(batches(len(features), schedule)):
        x, y = features[places].double(), labels[places]
        slopes = (x @ weights + biases[:, None]).softmax(-1)  # (G, B, K): of the mean cross-entropy, by the logits
        slopes[:, torch.arange(len(y), device=device), y] -= 1.0
        slopes /= len(y)
        lr = rates * (0.5 * (1.0 + math.cos(math.pi * step / schedule.steps)))
        for parameter, velocity, gradient in zip((weights, biases), speed, (x.T @ slopes, slopes.sum(1)), strict=True):
            velocity.mul_(schedule.momentum).add_(gradient)
            parameter.sub_(velocity * lr.view(-1, *[1] * (parameter.ndim - 1)))
    return weights, biases


def initial_weights(width: int, num_classes: int, seed: int) -> Tensor:
    """The weights that every learning rate starts from, float64 (width, num_classes), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(width, num_classes, dtype=torch.float64).normal_(std=INITIAL_STD, generator=generator)


def batches(images: int, schedule: Schedule) -> Iterator[Tensor]:
    """Places of the images of each update: permutations of all, laid end to end."""
    rng, line = np.random.default_rng(schedule.seed), np.empty(0, np.int64)
    for _ in range(schedule.steps):
        while len(line) < schedule.batch_size:
            line = np.concatenate([line, rng.permutation(images)])
        yield torch.from_numpy(line[: schedule.batch_size])
        line = line[schedule.batch_size :]


def _accuracies(train: Features, test: Features, schedule: Schedule, device: torch.device) -> dict[str, float]:
    names = [f"lr_{lr:g}" for lr in schedule.lrs]
    if not usable(train, test):
        return dict.fromkeys([*names, "top1"], math.nan)
    weights, biases = probe_grid(
        torch.from_numpy(train.values).to(device),
        torch.from_numpy(train.labels).to(device),
        train.num_classes,
        schedule,
    )
    labels = torch.from_numpy(test.labels).to(device)
    right = torch.zeros(len(schedule.lrs), dtype=torch.int64, device=device)
    for first in range(0, len(labels), schedule.batch_size):
        block = slice(first, first + schedule.batch_size)
        x = torch.from_numpy(test.values[block]).to(device).double()
        right += ((x @ weights + biases[:, None]).argmax(-1) == labels[block]).sum(1)
    accuracies = (right / len(labels)).tolist()
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    return {"top1": accuracies[best], "lr": schedule.lrs[best]} | dict(zip(names, accuracies, strict=True))
