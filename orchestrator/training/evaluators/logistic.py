"""Logistic regression on frozen features, by L-BFGS in float64, for a grid of strengths of regularisation.

    argmin  sum_i log(1 / p_i(y_i)) + |W|^2 / (2 C)        p_i = softmax(x_i W + b); the bias b is not regularised

C is chosen on a tenth of the training images, which are held out; the classifier is then fitted to all of them (DINOv2,
arXiv 2304.07193: 45 values of C from 1e-6 to 1e5).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.job.choices import FeatureSet
from orchestrator.training.evaluators.features import Features, on_each_set, usable
from orchestrator.training.measurement import Measurement

HELD_OUT = 10  # one training image in so many chooses C


def measure(
    measurement: Measurement, *, sets: Mapping[str, FeatureSet], c: Sequence[float], max_steps: int, seed: int
) -> dict[str, float]:
    """Accuracy on each set: `SET/top1`, with the C that is `SET/C`. Collective."""
    device = measurement.engine.device
    return on_each_set(measurement, sets, lambda train, test: _accuracy(train, test, c, max_steps, seed, device))


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    c: float,
    *,
    start: Tensor | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-9,
) -> Tensor:
    """The weights and, in the last row, the bias: (D + 1, K) float64, on the features' device.

    The objective is divided by the number of images, and L-BFGS works on weights that are divided by a scale for each
    feature, so that its curvature is about 1 in all directions. Neither moves the minimum.

    Args:
        features: (N, D).
        labels: int64 (N,), class numbers below `num_classes`.
        num_classes: K.
        c: C above.
        start: (D + 1, K) to start from. Default: zeros.
        max_steps: most steps of L-BFGS.
        tolerance: it ends when no component of the gradient is larger.
    """
    x = features.double()
    if start is None:
        start = torch.zeros(x.shape[1] + 1, num_classes, dtype=torch.float64, device=x.device)
    strength = 1 / (c * len(x))
    scale = (strength + x.square().mean(0) / 4).rsqrt()
    scale = torch.cat([scale, scale.new_full((1,), 2.0)])[:, None]  # of the bias: its feature is 1
    solution = (start / scale).requires_grad_()
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=max_steps,
        max_eval=2 * max_steps,
        tolerance_grad=tolerance,
        tolerance_change=1e-17,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        weights = solution * scale
        loss = F.cross_entropy(x @ weights[:-1] + weights[-1], labels)
        loss = loss + strength / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return solution.detach() * scale


def choose(features: Tensor, labels: Tensor, num_classes: int, cs: Sequence[float], max_steps: int, seed: int) -> float:
    """The C whose classifier of nine tenths of the images is right most often on the last tenth; of equal ones the
    smallest. Arguments as in `logistic_regression`.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    held_out, kept = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    best, most, weights = min(cs), -1, None
    for c in sorted(cs):  # each starts from the solution of the stronger regularisation before it
        weights = logistic_regression(features[kept], labels[kept], num_classes, c, start=weights, max_steps=max_steps)
        right = int((predictions(features[held_out], weights) == labels[held_out]).sum())
        if right > most:
            best, most = c, right
    return best


def predictions(features: Tensor, weights: Tensor) -> Tensor:
    """The likeliest class of each row of `features`, (M,), by weights of `logistic_regression`."""
    return (features.double() @ weights[:-1] + weights[-1]).argmax(-1)


def _accuracy(
    train: Features, test: Features, cs: Sequence[float], max_steps: int, seed: int, device: torch.device
) -> dict[str, float]:
    if not usable(train, test):
        return {"top1": math.nan}
    features, labels = torch.from_numpy(train.values).to(device), torch.from_numpy(train.labels).to(device)
    c = cs[0] if len(cs) == 1 else choose(features, labels, train.num_classes, cs, max_steps, seed)
    weights = logistic_regression(features, labels, train.num_classes, c, max_steps=max_steps)
    right = predictions(torch.from_numpy(test.values).to(device), weights).cpu().numpy() == test.labels
    return {"top1": float(right.mean()), "C": c}
