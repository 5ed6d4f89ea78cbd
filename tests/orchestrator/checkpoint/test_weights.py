"""Any model's URL: files of other formats besides runs and exports."""

from pathlib import Path

import pytest
import torch

import model
from data import storage
from model.weights import npz
from model.weights.weights import Preprocessing, Weights
from orchestrator.checkpoint.as_model.trained import ModelError
from orchestrator.checkpoint.weights import read_model
from orchestrator.inference.model import open_model


@pytest.fixture
def vit() -> model.VisionTransformer:
    made = model.create_model("ViT-Ti/16", num_classes=5, image_size=32)
    torch.nn.init.normal_(made.head.weight)
    return made.eval()


def test_the_authors_file(vit: model.VisionTransformer, tmp_path: Path) -> None:
    settings = {"name": "ViT-Ti/16", "image_size": 32, "num_classes": 5}
    tensors = dict(vit.state_dict())
    url = f"{tmp_path}/ti16.npz"
    npz.write(Weights(settings, tensors, Preprocessing(32)), url, storage, dtype=torch.float32)
    found = read_model(url, pytest.fail)
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    shapes = read_model(url, pytest.fail, values=False).tensors
    assert {name: t.shape for name, t in shapes.items()} == {name: t.shape for name, t in tensors.items()}
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(open_model(url).logits(images), vit(images), atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive", b"\x80\x04."])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors", "a.pt", "a.jpg"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name) as error:
            read_model(f"{tmp_path}/{name}", pytest.fail)
        assert "\n" not in str(error.value)
