"""Few-shot weights against a plain ridge regression; the draw and the accuracy against loops."""

import numpy as np
import pytest

from orchestrator.training.evaluators import fewshot
from orchestrator.training.evaluators.features import Features
from orchestrator.training.evaluators.fewshot import draw, few_shot_weights, whitened


def clusters(images: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of different scale around the mean of each class, float32, and labels of which each class has some."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    centres = np.random.default_rng(99).normal(0, 1, (classes, width))
    scales = np.random.default_rng(98).uniform(0.01, 20, width)
    return ((centres[labels] + rng.normal(0, 1.5, (images, width))) * scales + 3).astype(np.float32), labels


def ridge(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float) -> np.ndarray:
    """The definition: whiten, append 100, solve the normal equations."""
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    x = np.hstack([x, np.full((len(x), 1), 100.0)])
    y = np.array([[1.0 if k == label else -1.0 for k in range(num_classes)] for label in labels])
    weights: np.ndarray = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return weights


@pytest.mark.parametrize("l2", [1024.0, 1.0])
@pytest.mark.parametrize(("images", "width"), [(40, 7), (20, 64), (16, 15), (15, 15), (5, 40), (1, 3)])
def test_weights_are_those_of_a_ridge_regression(images: int, width: int, l2: float) -> None:
    features, labels = clusters(images, width, 5)
    weights = few_shot_weights(features, labels, 5, l2)
    assert (weights.shape, weights.dtype) == ((width + 1, 5), np.float64)
    expected = ridge(features, labels, 5, l2)
    assert np.abs(weights - expected).max() <= 1e-6 * max(np.abs(expected).max(), 1e-3)


def test_a_constant_feature_and_a_class_without_images() -> None:
    features, labels = clusters(30, 6, 3)
    features[:, 2] = 7.0
    np.testing.assert_allclose(few_shot_weights(features, labels, 4), ridge(features, labels, 4, 1024.0), atol=1e-9)
    assert np.abs(few_shot_weights(features, labels, 4)[2]).max() < 1e-12


@pytest.mark.parametrize(
    ("features", "labels", "l2", "words"),
    [
        (np.ones((0, 3)), np.ones(0, int), 1.0, "N above 0"),
        (np.ones((4, 3)), np.ones(5, int), 1.0, "expected"),
        (np.ones((2, 3)), np.array([0, 5]), 1.0, "labels 0 to 5"),
        (np.ones((2, 3)), np.array([-1, 2]), 1.0, "labels -1 to 2"),
        (np.ones((2, 3)), np.array([0, 2]), 0.0, "l2 0.0"),
    ],
)
def test_what_cannot_be_solved_is_refused(features: np.ndarray, labels: np.ndarray, l2: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        few_shot_weights(features, labels, 5, l2)


def test_the_draw_is_the_authors() -> None:
    labels = np.array([2, 0, 1, 1, 2, 0, 0, 2, 1, 1, 0, 2])
    rng = np.random.default_rng(7)
    for number, places in enumerate(draw(labels, 3, 7)):
        assert places.tolist() == rng.permutation(np.where(labels == number)[0]).tolist()
    assert [len(places) for places in draw(labels, 5, 7)] == [4, 4, 4, 0, 0]


def test_accuracy_to_the_last_image() -> None:
    """Mean and standard deviation over the seeds, every image counted by hand."""
    train, test = clusters(60, 8, 4, seed=1), clusters(333, 8, 4, seed=2)
    found = fewshot._accuracies(
        Features(*train, keys=[], num_classes=4), Features(*test, keys=[], num_classes=4), [1, 3, 1000], [0, 5], 64.0
    )
    expected: dict[str, list[float]] = {"1shot": [], "3shot": [], "1000shot": []}
    for seed in (0, 5):
        rng = np.random.default_rng(seed)
        order = [rng.permutation(np.where(train[1] == number)[0]) for number in range(4)]
        for shots in (1, 3, 1000):
            few = np.concatenate([places[:shots] for places in order])
            weights = ridge(train[0][few], train[1][few], 4, 64.0)
            x = train[0][few].astype(float)
            right = 0
            for image, label in zip(test[0].astype(float), test[1], strict=True):
                white = np.append((image - x.mean(0)) / (x.std(0) + 1e-5), 100.0)
                right += int(np.argmax(white @ weights)) == label
            expected[f"{shots}shot"].append(right / 333)
    for name, (a, b) in expected.items():
        assert found[name] == pytest.approx((a + b) / 2, abs=1e-12)
        assert found[f"{name}_std"] == pytest.approx(abs(a - b) / 2**0.5, abs=1e-12)
    assert 0.25 < found["1shot"] < found["3shot"] < found["1000shot"] < 1


def test_one_seed_has_no_deviation_and_nan_has_no_accuracy() -> None:
    train, test = clusters(20, 4, 2, seed=1), clusters(20, 4, 2, seed=2)
    sets = Features(*train, keys=[], num_classes=2), Features(*test, keys=[], num_classes=2)
    assert fewshot._accuracies(*sets, [1], [0], 1.0).keys() == {"1shot"}
    sets[1].values[3, 1] = np.nan
    found = fewshot._accuracies(*sets, [1, 5], [0, 1], 1.0)
    assert found.keys() == {"1shot", "5shot"}
    assert np.isnan(list(found.values())).all()


def test_whitening_is_that_of_the_training_images() -> None:
    train = np.array([[0.0, 5.0], [2.0, 5.0]])
    white = whitened(np.array([[3.0, 5.0]]), train)
    np.testing.assert_allclose(white, [[2 / (1 + 1e-5), 0.0, 100.0]])
