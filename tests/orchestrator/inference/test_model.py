"""A run as an open model: the network's own answers, for images that are prepared as in its evaluation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data import Loader, SampleOrder, open_index
from data.images.augment import Augment
from orchestrator.checkpoint.as_model.trained import ModelError
from orchestrator.engine.step import normalise
from orchestrator.inference.model import open_model
from tests.orchestrator.checkpoint.runs import MODEL, write_run
from tests.tars import packed_samples


def test_predictions_are_those_of_the_evaluation(digits: Path, tmp_path: Path) -> None:
    """Images of a packed set, unpacked into files, give the logits of the set's batches, bit by bit."""
    network = write_run(tmp_path / "run").eval()
    index = open_index(str(digits / "test"))
    order = SampleOrder(index, batch_size=32, shuffle=False)
    resized = Augment(crop="resize")
    with Loader(index, order, rank=0, world_size=1, seed=0, image_size=8, augment=resized, stop_step=1) as batches:
        batch = next(iter(batches))
    for number, (_, fields) in enumerate(packed_samples(digits / "test")[:32]):
        (tmp_path / f"{number:02d}.png").write_bytes(fields["png"])
    model = open_model(f"{tmp_path}/run")
    (read,) = model.read([f"{tmp_path}/*.png"])
    assert [Path(name).name for name in read.names] == [f"{n:02d}.png" for n in range(32)]
    with torch.no_grad():
        expected = network(normalise(batch.images, torch.float32))
    assert torch.equal(model.logits(read.images), expected)
    assert torch.equal(model.probabilities(read.images), expected.softmax(-1))
    assert model.features(read.images).shape == (32, 48)
    assert model.class_name(3) == "digit 3"


def test_preprocessing_is_that_of_the_first_held_out_set(tmp_path: Path) -> None:
    """The shorter side to 12 pixels, then the middle 8: numpy cuts it out of an image that needs no scaling."""
    sets = {"val": {"url": "U", "augment": {"crop": "center", "resize": 12}}, "b": {"augment": {"crop": "resize"}}}
    write_run(tmp_path / "run", data={"eval": sets})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    cv2.imwrite(f"{tmp_path}/image.png", pixels[:, :, ::-1])
    (read,) = open_model(f"{tmp_path}/run").read([f"{tmp_path}/image.png"])
    expected = pixels[2:10, 6:14].astype(np.float32) / 127.5 - 1
    assert np.allclose(read.images[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_independent_classes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", objective={"loss": "sigmoid"}, model={**MODEL, "representation_size": 32})
    model = open_model(f"{tmp_path}/run")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.probabilities(images), model.logits(images).sigmoid())
    assert model.features(images).shape == (2, 32) == (2, model.num_features)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: does not exist"):
        open_model(f"{tmp_path}/nothing")
