"""Nearest neighbours against scikit-learn and against a loop."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from orchestrator.training.evaluators import knn
from orchestrator.training.evaluators.features import Features
from orchestrator.training.evaluators.knn import knn_predictions
from tests.orchestrator.training.evaluators.test_fewshot import clusters


def votes(distances: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp((1 - distances) / 0.07)
    return weights


@pytest.mark.parametrize("blocks", [(1024, 16384), (7, 11)], ids=["in one block", "in small blocks"])
def test_predictions_are_those_of_scikit_learn(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "TEST_BLOCK", blocks[0])
    monkeypatch.setattr(knn, "TRAIN_BLOCK", blocks[1])
    train, labels = clusters(150, 12, 5, seed=1)
    test, _ = clusters(80, 12, 5, seed=2)
    ks = [1, 10, 20, 100]
    found = knn_predictions(torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), 5, ks)
    assert found.shape == (4, 80)
    for k, row in zip(ks, found, strict=True):
        reference = KNeighborsClassifier(k, weights=votes, algorithm="brute", metric="cosine")
        expected = reference.fit(train.astype(np.float64), labels).predict(test.astype(np.float64))
        assert row.tolist() == expected.tolist()
    assert len({tuple(row.tolist()) for row in found}) == 4


def test_accuracy_to_the_last_image() -> None:
    train, labels = clusters(90, 6, 3, seed=1)
    test, truth = clusters(70, 6, 3, seed=2)
    sets = Features(train, labels, [], 3), Features(test, truth, [], 3)
    found = knn._accuracies(*sets, [5, 200], 0.5, torch.device("cpu"))
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (train, test))
    for k in (5, 200):
        right = 0
        for image, label in zip(b, truth, strict=True):
            cosines = a @ image
            scores = np.zeros(3)
            for place in np.argsort(-cosines)[:k]:
                scores[labels[place]] += np.exp(cosines[place] / 0.5)
            right += int(scores.argmax()) == label
        assert found[f"k{k}"] == right / 70
    sets[0].values[0, 0] = np.inf
    assert np.isnan(list(knn._accuracies(*sets, [5], 0.5, torch.device("cpu")).values())).all()
