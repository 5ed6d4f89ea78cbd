"""Images by file, folder and pattern, and those that are none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from orchestrator.inference.images import Unread, find_images, read_batches


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path in ("b.png", "a.png", "c[1].png", "inner/d.bmp", "inner/e.jpg"):
        Path(path).parent.mkdir(exist_ok=True)
        cv2.imwrite(path, np.full((4, 4, 3), ord(path[-5]), np.uint8))
    Path("notes.txt").write_text("hello")
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["b.png", "a.png"], ["b.png", "a.png"]),
        (["?.png"], ["a.png", "b.png"]),
        (["c[1].png"], ["c[1].png"]),
        (["c[[]1].png"], ["c[1].png"]),
        (["inner"], ["inner/d.bmp", "inner/e.jpg"]),
        (["inner/"], ["inner/d.bmp", "inner/e.jpg"]),
        (["inn*"], ["inner/d.bmp", "inner/e.jpg"]),
        (["inner/*.bmp", "a.png"], ["inner/d.bmp", "a.png"]),
        (["."], ["./a.png", "./b.png", "./c[1].png", "./inner/d.bmp", "./inner/e.jpg"]),
        (["missing.png"], ["missing.png"]),
    ],
)
def test_words_name_images(folder: Path, words: list[str], names: list[str]) -> None:
    assert find_images(words) == names


def test_words_that_name_none(folder: Path) -> None:
    assert find_images(["*.gif", "empty", "a.png", "nowhere/*.png"]) == [
        Unread("*.gif", "no file has such a name"),
        Unread("empty", "has no images in it"),
        "a.png",
        Unread("nowhere/*.png", "no file has such a name"),
    ]


def test_batches_keep_the_order_and_name_what_cannot_be_read(folder: Path) -> None:
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:-20])
    named = find_images(["b.png", "notes.txt", "a.png", "missing.png", "*.gif", "inner", "cut.png"])

    def prepare(content: bytes) -> torch.Tensor:
        from data.packing.source import image_field

        return torch.full((3, 2, 2), float(len(image_field(content)[1])))

    batches = list(read_batches(named, prepare, 2))
    assert [batch.names for batch in batches] == [["b.png", "a.png"], ["inner/d.bmp", "inner/e.jpg"], []]
    assert [tuple(batch.images.shape) for batch in batches[:2]] == [(2, 3, 2, 2)] * 2
    assert [str(one) for batch in batches for one in batch.unread] == [
        "notes.txt: not an image: text",
        "missing.png: does not exist",
        "*.gif: no file has such a name",
        "cut.png: undecodable image: PNG cut short",
    ]


def test_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    from data import storage

    for name in ("x/a.png", "x/b.png"):
        storage.write_atomic(
            f"memory://images/{name}", cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
        )
    expected: list[str | Unread] = ["memory://images/x/a.png", "memory://images/x/b.png"]
    assert find_images(["memory://images/x/*.png"]) == find_images(["memory://images/x"]) == expected
