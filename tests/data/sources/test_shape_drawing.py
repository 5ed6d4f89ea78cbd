import cv2
import numpy as np
import pytest

from data.sources.shape_drawing import COLOURS, FORMS, TEXTURES, class_names, look, shape_image


def test_classes_are_different_combinations():
    assert len({look(number) for number in range(1000)}) == 1000
    assert len({(one.form, one.colour) for one in map(look, range(100))}) == 100
    for attribute, names in (("form", FORMS), ("colour", COLOURS), ("texture", TEXTURES)):
        assert {getattr(look(number), attribute) for number in range(10)} == set(range(len(names))) == set(range(10))
    assert len(set(class_names(1000))) == 1000
    assert class_names(12)[::11] == ["plain red circle", "checked yellow square"]


def test_an_image_depends_on_seed_split_and_number_alone():
    one, labels = shape_image(3, "train", 17)
    assert (one.shape, one.dtype, len(labels)) == ((64, 64, 3), np.uint8, 1)
    again, _ = shape_image(3, "train", 17)
    assert np.array_equal(one, again)
    everything = [
        shape_image(seed, split, number)[0].tobytes()
        for seed in range(3)
        for split in ("train", "test")
        for number in range(20)
    ]
    assert len(set(everything)) == 3 * 2 * 20


@pytest.mark.parametrize("classes", [10, 137, 1000])
def test_labels_are_uniform(classes):
    """Chi-squared over ten groups of classes: 9 degrees of freedom, 99.99 % below 33.7."""
    labels = [shape_image(0, "train", i, classes=classes, image_size=16)[1][0] for i in range(500)]
    counts = np.bincount([label * 10 // classes for label in labels], minlength=10)
    expected = np.bincount(np.arange(classes) * 10 // classes) / classes * 500
    assert max(labels) < classes
    assert ((counts - expected) ** 2 / expected).sum() < 33.7


def test_the_labelled_object_is_in_front():
    """The colour of the middle is that of the class, apart from light and texture."""
    palette = np.array(list(COLOURS.values()), float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    right = 0
    for i in range(200):
        image, (label,) = shape_image(0, "test", i, classes=10)
        votes = palette @ image[16:48, 16:48].reshape(-1, 3).astype(float).T
        saturation = np.ptp(image[16:48, 16:48].reshape(-1, 3).astype(int), axis=1)
        best = np.bincount(votes.argmax(0)[saturation > 60], minlength=10).argmax() if (saturation > 60).any() else 9
        right += best == look(label).colour
    assert right > 130  # chance: 20; brown and white look like backgrounds


def test_nearest_neighbours_on_pixels_beat_chance():
    def features(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        made = [shape_image(0, split, i) for i in range(count)]
        pixels = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image, _ in made]
        return np.array(pixels, np.float32), np.array([labels[0] for _, labels in made])

    train, train_labels = features("train", 1000)
    test, test_labels = features("test", 200)
    distance = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    assert (train_labels[distance.argmin(1)] == test_labels).mean() > 0.2  # chance: 0.1, standard error 0.021


def test_multi_label():
    made = [shape_image(0, "train", i, classes=50, multi_label=True)[1] for i in range(300)]
    assert {len(labels) for labels in made} == {1, 2, 3, 4, 5}
    assert all(list(labels) == sorted(set(labels)) for labels in made)
    assert {label for labels in made for label in labels} == set(range(50))
