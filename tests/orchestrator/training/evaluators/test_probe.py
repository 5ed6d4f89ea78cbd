"""The probe's grid against a plain loop with PyTorch's own layer, optimizer and schedule."""

import numpy as np
import pytest
import torch

from orchestrator.training.evaluators import probe
from orchestrator.training.evaluators.features import Features
from orchestrator.training.evaluators.probe import Schedule, batches, initial_weights, probe_grid
from tests.orchestrator.training.evaluators.test_fewshot import clusters

SCHEDULE = Schedule(lrs=[1e-3, 0.03, 1.0], steps=40, batch_size=24, momentum=0.9, seed=3)


def plain(features: torch.Tensor, labels: torch.Tensor, classes: int, lr: float) -> torch.nn.Linear:
    """One classifier, trained alone. The batches are written out a second time."""
    layer = torch.nn.Linear(features.shape[1], classes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(initial_weights(features.shape[1], classes, SCHEDULE.seed).T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr * SCHEDULE.batch_size / 256, momentum=SCHEDULE.momentum)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SCHEDULE.steps, eta_min=0)
    rng = np.random.default_rng(SCHEDULE.seed)
    line = np.concatenate([rng.permutation(len(features)) for _ in range(100)])
    for step in range(SCHEDULE.steps):
        places = torch.from_numpy(line[step * SCHEDULE.batch_size : (step + 1) * SCHEDULE.batch_size])
        loss = torch.nn.functional.cross_entropy(layer(features[places].double()), labels[places])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    return layer


@pytest.mark.parametrize("images", [100, 10], ids=["batches within an epoch", "a batch of several epochs"])
def test_a_grid_is_as_many_plain_loops(images: int) -> None:
    values, numbers = clusters(images, 6, 4, seed=1)
    features, labels = torch.from_numpy(values / 10), torch.from_numpy(numbers)
    weights, biases = probe_grid(features, labels, 4, SCHEDULE)
    assert (weights.shape, biases.shape, weights.dtype) == ((3, 6, 4), (3, 4), torch.float64)
    for place, lr in enumerate(SCHEDULE.lrs):
        layer = plain(features, labels, 4, lr)
        torch.testing.assert_close(weights[place], layer.weight.detach().T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(biases[place], layer.bias.detach(), rtol=1e-9, atol=1e-12)
    assert (weights[2] - weights[0]).abs().max() > 0.1


def test_batches_are_epochs_end_to_end() -> None:
    line = torch.cat(list(batches(25, SCHEDULE)))
    assert len(line) == SCHEDULE.steps * SCHEDULE.batch_size
    for first in range(0, len(line) - 25, 25):
        assert sorted(line[first : first + 25].tolist()) == list(range(25))


def test_accuracy_of_every_rate_and_the_best() -> None:
    train, test = clusters(100, 6, 4, seed=1), clusters(61, 6, 4, seed=2)
    sets = Features(train[0] / 10, train[1], [], 4), Features(test[0] / 10, test[1], [], 4)
    found = probe._accuracies(*sets, SCHEDULE, torch.device("cpu"))
    expected = {}
    for lr in SCHEDULE.lrs:
        layer = plain(torch.from_numpy(sets[0].values), torch.from_numpy(train[1]), 4, lr)
        guesses = layer(torch.from_numpy(sets[1].values).double()).argmax(1).numpy()
        expected[f"lr_{lr:g}"] = float((guesses == test[1]).mean())
    best = max(expected, key=lambda name: expected[name])
    assert found == pytest.approx({**expected, "top1": expected[best], "lr": float(best.removeprefix("lr_"))})
    assert len(set(expected.values())) > 1
    sets[1].values[0] = np.nan
    assert np.isnan(probe._accuracies(*sets, SCHEDULE, torch.device("cpu"))["top1"])
