import hashlib

import cv2
import numpy as np
import pytest
import webdataset

from data import DataError, open_index
from data.images.decode import decode
from data.sources.shape_drawing import class_names, shape_image
from data.sources.shapes import Shapes, pack_shapes


def test_a_larger_set_begins_with_the_smaller_one():
    small, large = (Shapes(samples=count).reading(np.arange(10)) for count in (10, 1000))
    assert list(small()) == list(large())


def test_packed(tmp_path):
    packed = pack_shapes(str(tmp_path), samples=40, test_samples=10, classes=20, image_size=32, multi_label=True)
    assert packed["train"].wrote
    index = open_index(str(tmp_path / "train"))
    assert (index.num_samples, index.num_classes, index.multi_label) == (40, 20, True)
    assert (tmp_path / "train" / "classes.txt").read_text().splitlines() == class_names(20)
    samples = list(webdataset.WebDataset(str(tmp_path / "test" / "000000.tar"), shardshuffle=False).decode())
    for sample in samples:
        image, labels = shape_image(0, "test", int(sample["__key__"]), classes=20, image_size=32, multi_label=True)
        assert tuple(sample["json"]["labels"]) == labels
    first = next(iter(webdataset.WebDataset(str(tmp_path / "test" / "000000.tar"), shardshuffle=False)))
    image, _ = shape_image(0, "test", 0, classes=20, image_size=32, multi_label=True)
    stored, drawn = (cv2.resize(one, (4, 4), interpolation=cv2.INTER_AREA) for one in (decode(first["jpg"]), image))
    assert np.abs(stored.astype(int) - drawn).mean() < 3  # the noise that JPEG keeps is in single pixels
    digest = hashlib.sha256((tmp_path / "train" / "000000.tar").read_bytes()).hexdigest()
    again = pack_shapes(str(tmp_path), samples=40, test_samples=10, classes=20, image_size=32, multi_label=True)
    assert not again["train"].wrote
    forced = pack_shapes(
        str(tmp_path), samples=40, test_samples=10, classes=20, image_size=32, multi_label=True, force=True
    )
    assert forced["train"].wrote
    assert hashlib.sha256((tmp_path / "train" / "000000.tar").read_bytes()).hexdigest() == digest
    with pytest.raises(DataError, match="already holds"):
        pack_shapes(str(tmp_path), samples=41, test_samples=10, classes=20, image_size=32, multi_label=True)
