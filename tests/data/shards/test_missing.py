"""The error for a `data.train.url` that is no data set."""

import pytest

from data import DataError, open_index, storage


def said(url: str) -> str:
    with pytest.raises(DataError) as refused:
        open_index(url)
    return str(refused.value)


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "set") if request.param == "disk" else f"memory://missing/{tmp_path.name}"


@pytest.mark.parametrize("path", ["1.jpg", "cat/1.PNG", "train/cat/1.jpeg", "v1.2/cat/1.webp"])
def test_raw_pictures_are_to_be_packed(root, path):
    storage.write_atomic(f"{root}/{path}", b"1")
    assert said(root) == (
        f"{root}: no index.json there, but image files: pack them once with "
        f"`python -m data pack folder DEST --from {root}`, and give DEST"
    )


@pytest.mark.parametrize("path", ["0.tar", "notes.txt", "cat/notes.txt"])
def test_tars_are_to_be_indexed(root, path):
    storage.write_atomic(f"{root}/{path}", b"1")
    assert said(root) == (
        f"{root}: no index.json there; to index WebDataset tars run `python -m data pack --index-only {root}`"
    )


def test_the_parent_of_sets(root):
    for path in ("train/index.json", "val/index.json", "train/0.tar"):
        storage.write_atomic(f"{root}/{path}", b"1")
    assert said(root) == f"{root}: no index.json there, but in train, val: did you mean {root}/train?"


def test_nothing_there(root):
    assert said(root) == f"{root}: does not exist"
