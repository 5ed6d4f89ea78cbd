"""Our folder of a trained model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import model
from model.weights import export
from model.weights.load import load, read
from model.weights.weights import PLAIN, Preprocessing, Weights, WeightsError
from tests.model.weights import authors
from tests.model.weights.test_load import create

PIXELS = Preprocessing(12, (0.48, 0.45, 0.4), (0.2, 0.25, 0.5), "bicubic", antialias=False, resize=14)
ABOUT = {"job": "j", "step": 7, "accuracy": {"eval/val/top1": 0.5}}


def written(folder: Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> tuple[str, Weights]:
    network = create(**overrides)
    settings = {"name": "Ti/4", "num_classes": 5, "image_size": 12, "depth": 2, "width": 12, "mlp_dim": 20, "heads": 3}
    weights = Weights(settings | overrides, network.state_dict(), PIXELS, tuple("abcde"), dict(ABOUT))
    export.write(weights, str(folder), PLAIN, dtype=dtype)
    return str(folder), weights


@pytest.mark.parametrize(
    "overrides",
    [{}, {"gelu": "erf", "norm_eps": 1e-12}, {"pool": "gap"}, {"representation_size": 7}, {"dropout": 0.1}],
)
def test_read_it_is_what_was_written(tmp_path: Path, overrides: dict[str, Any]) -> None:
    url, weights = written(tmp_path / "m", **overrides)
    found = read(url)
    assert model.vit_config(**found.settings) == model.vit_config(**weights.settings)
    assert found.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in weights.tensors.items())
    assert found.preprocessing == PIXELS
    assert found.class_names == tuple("abcde")
    assert found.about.items() >= ABOUT.items()
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]
    theirs = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.equal(theirs[name], value) for name, value in weights.tensors.items())


@pytest.mark.parametrize(
    ("crop", "resize", "expected"),
    [("resize", None, (None, False)), ("center", 20, (20, False)), ("center", None, (13, False)),
     ("resize_center", 20, (20, True))],
)  # fmt: skip
def test_crops(tmp_path: Path, crop: str, resize: int | None, expected: tuple[int | None, bool]) -> None:
    """Those of held-out sets, which exports of runs have."""
    url, _ = written(tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    record = json.loads(path.read_text())
    record["preprocessing"] = {"image_size": 12, "crop": crop, "resize": resize, "interpolation": "bilinear"}
    path.write_text(json.dumps(record))
    weights = read(url)
    assert (weights.preprocessing.resize, weights.preprocessing.squash) == expected
    export.write(weights, str(tmp_path / "again"), PLAIN)
    assert read(str(tmp_path / "again")).preprocessing == weights.preprocessing
    again = json.loads((tmp_path / "again" / "model.json").read_text())["preprocessing"]
    assert again["crop"] == crop


def test_the_tensors_alone_are_a_model(tmp_path: Path) -> None:
    url, _ = written(tmp_path / "m", gelu="erf")
    found = read(f"{url}/model.safetensors")
    assert found.settings["gelu"] == "erf"
    assert found.preprocessing == PIXELS
    images = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(load(f"{url}/model.safetensors")(images), load(url)(images))


def test_16_bits(tmp_path: Path) -> None:
    url, weights = written(tmp_path / "m", torch.bfloat16)
    found = read(url).tensors
    assert all(torch.equal(found[name], value.to(torch.bfloat16)) for name, value in weights.tensors.items())
    assert {p.dtype for p in load(url).parameters()} == {torch.float32}
    assert json.loads((tmp_path / "m" / "model.json").read_text())["weights"]["dtype"] == "bf16"


def test_without_a_head(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **authors.network(classes=None))
    export.write(read(str(tmp_path / "w.npz")), str(tmp_path / "m"), PLAIN)
    found = read(str(tmp_path / "m"))
    assert "num_classes" not in found.settings
    images = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        features = load(str(tmp_path / "m")).features(images)
        assert torch.equal(features, load(str(tmp_path / "w.npz")).features(images))


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written(tmp_path / "a")
    torch.manual_seed(0)
    written(tmp_path / "b")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_whose_writing_was_interrupted_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a new one nor one that replaces another."""
    written(tmp_path / "m")

    def interrupted(*_: object, **__: object) -> tuple[int, str]:
        raise WeightsError("disk full")

    monkeypatch.setattr(export, "write_safetensors", interrupted)
    for folder in ("m", "new"):
        with pytest.raises(WeightsError, match="disk full"):
            written(tmp_path / folder)
    with pytest.raises(WeightsError, match="was not written to the end"):
        read(str(tmp_path / "m"))
    with pytest.raises(WeightsError):
        read(str(tmp_path / "new"))


def test_bad_settings_replace_nothing(tmp_path: Path) -> None:
    url, weights = written(tmp_path / "m")
    weights.settings["heads"] = 5
    with pytest.raises(WeightsError, match="heads"):
        export.write(weights, url, PLAIN)
    load(url)


CHANGES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "a list": ([], "no table"),
    "another program's": ({"name": "x"}, "is not the settings of a model that this program exported"),
    "newer": ({"format": 99}, "newer version"),
    "another depth": ({"depth": 3}, "does not fit the model: missing in the file: blocks.2.norm1.weight"),
    "huge depth": ({"depth": 10**9}, "too few for 1000000000 blocks"),
    "huge width": ({"width": 3 * 10**18}, ""),
    "huge image": ({"image_size": 4 * 10**9}, ""),
    "negative": ({"depth": -1}, "depth"),
    "text": ({"width": "12"}, "width"),
    "gelu": ({"gelu": "relu"}, "gelu"),
    "eps": ({"norm_eps": 0}, "norm_eps"),
    "crop": ({"preprocessing": {"image_size": 12, "crop": "random"}}, "crop"),
    "std": ({"preprocessing": {"image_size": 12, "std": [0, 0, 0]}}, "must not be zero"),
    "mean": ({"preprocessing": {"image_size": 12, "mean": [0.5, 0.5]}}, "three finite numbers"),
    "no preprocessing": ({"preprocessing": None}, "damaged"),
    "names": ({"class_names": [1, 2]}, "class_names"),
    "size": ({"weights": {"bytes": 5}}, "export it again"),
    "no size": ({"weights": {}}, "export it again"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_model_json(tmp_path: Path, case: str) -> None:
    url, _ = written(tmp_path / "m")
    change, says = CHANGES[case]
    path = tmp_path / "m" / "model.json"
    if isinstance(change, dict):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(change if case == "another program's" else record | change))
    else:
        path.write_bytes(change if isinstance(change, bytes) else json.dumps(change).encode())
    with pytest.raises(WeightsError) as error:
        load(url)
    assert says in str(error.value)
    assert str(error.value).startswith(url)
    assert len(str(error.value).splitlines()) == 1


def test_model_json_of_another_export(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b", depth=1)
    (tmp_path / "b" / "model.json").replace(tmp_path / "a" / "model.json")
    with pytest.raises(WeightsError, match="export it again"):
        read(str(tmp_path / "a"))


def test_a_truncated_file(tmp_path: Path) -> None:
    url, _ = written(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(WeightsError, match="no complete safetensors file"):
            load(url)
    path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        load(url)
