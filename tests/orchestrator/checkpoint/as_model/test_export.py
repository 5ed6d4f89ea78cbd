"""An exported model: the same weights, a card whose lines run, and damage in one line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import storage
from model.weights.export import write as write_folder
from model.weights.load import read as weights_of
from orchestrator.checkpoint.as_model.export import is_current, write_export
from orchestrator.checkpoint.as_model.trained import Address, ModelError, Trained, read_trained
from orchestrator.checkpoint.weights import read_model
from orchestrator.inference.model import open_model
from tests.orchestrator.checkpoint.runs import IDENTITY, write_run


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    write_run(tmp_path / "run", objective={"loss": "sigmoid"})
    return read_trained(Address(f"{tmp_path}/run"), pytest.fail)


def test_a_folder_that_the_model_package_wrote(trained: Trained, tmp_path: Path) -> None:
    """Both write and read the same folder; a converted model has no run, no step and no class names."""
    write_export(trained, f"{tmp_path}/out")
    weights = weights_of(f"{tmp_path}/out")
    assert all(torch.equal(weights.tensors[name], value) for name, value in trained.tensors.items())
    weights.about, weights.class_names = {}, None
    write_folder(weights, f"{tmp_path}/again", storage)
    again = read_model(f"{tmp_path}/again", pytest.fail)
    assert (again.config, again.augment, again.class_names) == (trained.config, trained.augment, [])
    assert all(torch.equal(again.tensors[name], value) for name, value in trained.tensors.items())


def test_another_library_reads_the_weights(trained: Trained, tmp_path: Path) -> None:
    write_export(trained, f"{tmp_path}/out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == trained.tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in trained.tensors.items())


def test_bf16_is_rounded_to_the_nearest(trained: Trained, tmp_path: Path) -> None:
    write_export(trained, f"{tmp_path}/out", "bf16")
    found, again = load_file(tmp_path / "out/model.safetensors"), read_model(f"{tmp_path}/out", pytest.fail)
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in trained.tensors.items())
    assert all(torch.equal(again.tensors[name], value.bfloat16().float()) for name, value in trained.tensors.items())


def test_it_is_read_as_it_was_written(trained: Trained, tmp_path: Path) -> None:
    write_export(trained, f"{tmp_path}/out")
    again = read_model(f"{tmp_path}/out", pytest.fail)
    assert (again.config, again.augment, again.class_names, again.step, again.metrics) == (
        *(trained.config, trained.augment, trained.class_names, trained.step, trained.metrics),
    )
    assert list(again.tensors) == list(trained.tensors)
    assert all(torch.equal(again.tensors[name], value) for name, value in trained.tensors.items())
    shapes = read_model(f"{tmp_path}/out", pytest.fail, values=False).tensors
    assert {name: t.shape for name, t in shapes.items()} == {name: t.shape for name, t in trained.tensors.items()}
    record = json.loads((tmp_path / "out/model.json").read_text())
    assert (record["name"], record["image_size"], record["depth"], record["num_classes"]) == ("ViT-Ti/2", 8, 3, 10)
    assert record["class_names"][9] == "digit 9"
    assert record["provenance"]["run"] == IDENTITY
    assert record["provenance"]["data"] == "d" * 64
    assert record["preprocessing"]["crop"] == "resize"
    assert open_model(f"{tmp_path}/out").sigmoid


def test_the_lines_of_the_card_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_export(trained, "out")
    text = (tmp_path / "out/README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 4
    cv2.imwrite("image.png", np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    exec(lines, {})
    (batch,) = open_model("out").read(["image.png"])
    assert capsys.readouterr().out == f"digit {open_model('out').logits(batch.images)[0].argmax()}\n"
    assert "| step | 1 |" in text
    assert f"| network | ViT-Ti/2, {sum(t.numel() for t in trained.tensors.values()):,} parameters |" in text


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (
        lambda out: os.truncate(out / "model.safetensors", 5000),
        "model.safetensors is cut short",
    ),
    "a flipped bit": (
        lambda out: flip(out / "model.safetensors"),
        "model.safetensors does not match its SHA-256",
    ),
    "no weights": (lambda out: (out / "model.safetensors").unlink(), "model.safetensors is missing"),
    "noise": (lambda out: (out / "model.safetensors").write_bytes(os.urandom(9000)), "is no safetensors file"),
    "no JSON": (lambda out: (out / "model.json").write_text("{"), "model.json: damaged"),
    "another depth": (
        lambda out: change(out / "model.json", depth=4),
        "is not of the network in model.json: blocks.3.",
    ),
    "impossible": (lambda out: change(out / "model.json", heads=7), "model.json: damaged (heads: 7 heads"),
    "a newer version": (lambda out: change(out / "model.json", format=99), "of a newer version of this program"),
    "no classes": (lambda out: change(out / "model.json", class_names=3), "model.json: damaged"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("harm", HARMS)
def test_damage(harm: str, trained: Trained, tmp_path: Path) -> None:
    write_export(trained, f"{tmp_path}/out")
    HARMS[harm][0](tmp_path / "out")
    with pytest.raises(ModelError) as error:
        read_model(f"{tmp_path}/out", pytest.fail)
    assert HARMS[harm][1] in str(error.value)
    assert "\n" not in str(error.value)


def test_an_export_that_fails_leaves_no_model(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(trained, f"{tmp_path}/out")
    monkeypatch.setattr("data.storage.write_atomic", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_export(trained, f"{tmp_path}/out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md"]


def test_whether_it_is_the_model_of_a_run_as_it_is_now(trained: Trained, tmp_path: Path) -> None:
    assert not is_current(f"{tmp_path}/out", 1, {})
    write_export(trained, f"{tmp_path}/out")
    assert is_current(f"{tmp_path}/out", 1, {"train/loss": 2.0})
    assert not is_current(f"{tmp_path}/out", 2, {})
    assert not is_current(f"{tmp_path}/out", 1, {"eval/test/top1": 0.5})


def test_a_bucket(trained: Trained) -> None:
    write_export(trained, "memory://models/one/")
    again = read_model("memory://models/one", pytest.fail)
    assert all(torch.equal(again.tensors[name], value) for name, value in trained.tensors.items())
