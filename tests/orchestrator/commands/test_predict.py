"""`predict` and `features` as a user calls them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from orchestrator.__main__ import main
from orchestrator.engine.step import normalise
from tests.orchestrator.checkpoint.runs import write_run


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """A run `run` and three images; returns the network's logits for them."""
    monkeypatch.chdir(tmp_path)
    network = write_run(tmp_path / "run").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for name, image in zip("abc", pixels, strict=True):
        cv2.imwrite(f"{name}.png", image[:, :, ::-1])
    with torch.no_grad():
        return network(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.float32))


def test_predict(images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "a.png", "b.png", "c.png", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    best = images.softmax(-1).topk(2)
    for line, name, values, numbers in zip(lines, "abc", best.values, best.indices, strict=True):
        shown = ", ".join(f"digit {n} {v:.1%}" for v, n in zip(values.tolist(), numbers.tolist(), strict=True))
        assert line == f"{name}.png: {shown}"


def test_what_is_no_image_is_named_and_the_others_go_on(
    images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("hello")
    assert main(["predict", "run", "a.png", "notes.txt", "*.gif", "b.png", "--batch-size", "1", "--json"]) == 2
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert [one["image"] for one in found] == ["a.png", "b.png"]
    for one, logits in zip(found, images, strict=False):
        top = logits.softmax(-1).topk(5)
        assert [each["class"] for each in one["classes"]] == top.indices.tolist()
        assert [each["probability"] for each in one["classes"]] == pytest.approx(top.values.tolist(), rel=1e-4)
        assert one["classes"][0]["name"] == f"digit {top.indices[0]}"
    assert captured.err.splitlines() == [
        "error: notes.txt: not an image: text",
        "error: *.gif: no file has such a name",
    ]


def test_more_classes_than_there_are(images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "a.png", "--top", "99", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere", "a.png"], "error: nowhere: "),
        (["run@7", "a.png"], "error: run: no complete checkpoint at step 7; it has 1"),
        (["run#ema", "a.png"], "error: run/step-000000001-00000000: it has no averaged weights"),
    ],
)
def test_no_such_model(images: torch.Tensor, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *words]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(line)


def test_features(images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "run", ".", "missing.png", "out/features.npz"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "out/features.npz: features of 3 images, 48 numbers each\n"
    assert captured.err == "error: missing.png: does not exist\n"
    with np.load("out/features.npz", allow_pickle=False) as found:
        assert found["images"].tolist() == ["./a.png", "./b.png", "./c.png"]
        features = found["features"]
    from orchestrator.inference.model import open_model

    head = open_model("run").network.head
    assert features.dtype == np.float32
    assert torch.allclose(torch.from_numpy(features) @ head.weight.T + head.bias, images, atol=1e-5)


def test_features_replace_a_file_only_if_asked(images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.npz").write_text("mine")
    assert main(["features", "run", "a.png", "f.npz"]) == 2
    assert capsys.readouterr().err == "error: f.npz: exists; use --force to replace it\n"
    assert Path("f.npz").read_text() == "mine"
    assert main(["features", "run", "a.png", "f.npz", "--force"]) == 0
    assert main(["features", "run", "a.png", "b.png"]) == 2
    assert "its name ends with .npz" in capsys.readouterr().err
