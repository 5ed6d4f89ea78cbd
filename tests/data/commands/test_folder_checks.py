"""`pack folder` into the images themselves, and with splits for classes: exit code 2, unless --yes."""

from pathlib import Path

import pytest

from data import open_index
from data.__main__ import main
from data.commands.folder_checks import check_classes, check_dest
from data.errors import DataError


@pytest.fixture
def parent(tmp_path: Path, photos, encode) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "parent" / split / name).mkdir(parents=True)
            (tmp_path / "parent" / split / name / "1.jpg").write_bytes(encode(photos[0][:8, :8], "JPEG"))
    return tmp_path / "parent"


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("dest", [".", "train", "train/", "train/../train", "train/shards", "link"])
def test_dest_among_the_images(parent, dest, capsys, monkeypatch):
    monkeypatch.chdir(parent)
    (parent / "link").symlink_to("train")
    before = tree(parent)
    images = "." if dest == "." else "train"
    assert main(["pack", "folder", dest, "--from", images]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tree(parent) == before
    assert main(["pack", "folder", "train", "--from", str(parent / "train"), "--yes"]) == 0
    assert open_index(str(parent / "train")).num_samples == 2


def test_a_part_among_the_images(parent, capsys):
    """DEST is the parent, and the part of it for training is the folder of the images."""
    assert main(["pack", "folder", str(parent), "--from", f"{parent}/train", "--holdout", "1"]) == 2
    assert "is the folder of the images" in capsys.readouterr().err
    assert main(["pack", "folder", str(parent), "--from", f"{parent}/train"]) == 0


def test_dest_on_a_store():
    for dest in ("gs://b/x", "gs://b/x/", "gs://b/x/y"):
        with pytest.raises(DataError, match="the folder of the images"):
            check_dest(dest, "gs://b/x/", [""])
    check_dest("gs://b/x2", "gs://b/x", [""])
    check_dest("gs://b", "gs://b/x", [""])
    check_dest("x", "gs://b/x", [""])


def test_splits_as_classes(parent, capsys):
    out = str(parent.parent / "out")
    assert main(["pack", "folder", out, "--from", str(parent)]) == 2
    error = capsys.readouterr().err
    assert 'its classes would be "test" and "train"' in error
    assert f"--from {parent}/test" in error
    assert not Path(out).exists()
    assert main(["pack", "folder", out, "--from", str(parent), "--yes"]) == 0
    assert open_index(out).class_names == ("test", "train")


@pytest.mark.parametrize(
    "names", [["train"], ["Test", "Train"], ["annotations", "train", "val"], ["test", "train", "x"]]
)
def test_names_of_splits(names):
    with pytest.raises(DataError, match="splits"):
        check_classes("x", names)


@pytest.mark.parametrize("names", [[], ["cat"], ["bus", "train"], ["car", "test"], ["trains", "tests"]])
def test_names_of_classes(names):
    check_classes("x", names)
