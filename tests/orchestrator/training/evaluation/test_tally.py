"""Counts of a set on 1, 2 and 3 workers against scikit-learn's metrics on the logits of all images at once."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_digits

import model
from data.sources.digits import held_out_mask
from infra.local.ranks import run_ranks
from model.objectives import dense_targets, softmax_cross_entropy
from orchestrator.job.choices import HeldOutAugment
from orchestrator.job.sections import Measured
from orchestrator.training.evaluation.frozen import Frozen
from orchestrator.training.evaluation.measure import metrics_of
from orchestrator.training.evaluation.metrics import RIGHT
from orchestrator.training.evaluation.tally import Counts, count
from orchestrator.training.measurement import Measurement

BATCH = 24


def network() -> model.VisionTransformer:
    torch.manual_seed(0)
    vit = model.create_model(
        "ViT-Ti/16", num_classes=10, image_size=8, patch_size=2, depth=2, width=48, heads=3, mlp_dim=96
    )
    torch.nn.init.normal_(vit.head.weight, std=0.3)
    return vit


def counted(folder: str) -> Counts:
    job: Any = SimpleNamespace(
        batch_size=BATCH,
        model=Measured(init_from="x", image_size=8),
        data=SimpleNamespace(workers=1, prefetch=1, memory=None, cache_dir=None, cache_size=2**20, unreadable="stop"),
    )

    def around(items: Iterable[Any]) -> Iterator[Any]:
        yield from items

    share = -(-BATCH // dist.get_world_size())
    frozen = Frozen(network(), torch.float32, share, torch.device("cpu"))
    measurement = Measurement(frozen, job, 0, 10, around, lambda name, bad: None)
    with measurement.open("test", f"{folder}/test", HeldOutAugment(crop="resize")) as held_out:
        return count(
            frozen,
            held_out,
            lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 10)),
            rule="top1",
            num_classes=10,
            sigmoid=False,
        )


@pytest.fixture(scope="module")
def reference() -> tuple[torch.Tensor, np.ndarray]:
    """(logits, labels) of the held-out digits, from scikit-learn's arrays."""
    data = load_digits()
    mask = held_out_mask(data.target)
    pixels = torch.from_numpy(np.rint(data.images[mask] * 255 / 16)).float() / 127.5 - 1
    with torch.no_grad():
        return network().eval()(pixels[:, None].expand(-1, 3, -1, -1)), data.target[mask]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_counts_are_those_of_scikit_learn(
    digits: Path, reference: tuple[torch.Tensor, np.ndarray], workers: int
) -> None:
    logits, labels = reference
    predictions, probabilities = logits.argmax(1).numpy(), logits.double().softmax(1).numpy()
    for found in run_ranks(workers, counted, str(digits)):
        assert (found.images, found.judged, found.bad) == (len(labels), len(labels), 0)
        assert found.right["top1"] == sklearn_metrics.accuracy_score(labels, predictions, normalize=False)
        assert found.right["top5"] == sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=5, normalize=False)
        assert found.confusion is not None
        assert found.confusion.tolist() == sklearn_metrics.confusion_matrix(labels, predictions).tolist()
        assert found.class_images is not None
        assert found.class_right is not None
        recall = sklearn_metrics.recall_score(labels, predictions, average=None)
        np.testing.assert_allclose(found.class_right / found.class_images, recall)
        assert (found.answers == RIGHT).tolist() == (predictions == labels).tolist()

        metrics = metrics_of(found)
        assert metrics["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), rel=1e-5)
        p = sklearn_metrics.accuracy_score(labels, predictions)
        assert metrics["top1"] == pytest.approx(p)
        assert metrics["top1_se"] == pytest.approx(math.sqrt(p * (1 - p) / len(labels)))
        assert 0.02 < p < 0.9
        confidences = probabilities.max(1)
        inside = np.ceil(confidences * 15).astype(int) - 1
        error = sum(abs((predictions == labels)[inside == m].sum() - confidences[inside == m].sum()) for m in range(15))
        assert metrics["ece"] == pytest.approx(error / len(labels), abs=1e-5)
        assert metrics["images"] == len(labels)
        assert "judged_images" not in metrics
