"""Which files are images: by name where it is known, and else by the first bytes."""

import os
from pathlib import Path

import fsspec
import pytest

from data import storage
from data.sources.walk import images
from data.sources.walk.judge import CLOSED

SIZE = 4000


@pytest.fixture
def contents(photos, encode) -> dict[str, tuple[bytes, str | None]]:
    """(content, the reason why it is no image) by path."""
    photo, text = photos[0][:64, :64], b"words"
    jpeg = encode(photo, "JPEG")
    return {
        "a/1.jpg": (text, None),  # packing shows what it is
        "a/1.JPEG": (b"", None),
        "a/1.avif": (encode(photo, "AVIF"), None),
        "a/1.jfif": (jpeg, None),
        "a/1.jpe": (jpeg, None),
        "a/1.jp2": (encode(photo, "JPEG2000"), None),
        "a/1.image": (encode(photo, "PNG"), None),
        "a/0123456789abcdef": (encode(photo, "WEBP"), None),
        "a.b/noextension": (jpeg, None),
        "a/.jpg": (jpeg, None),
        "a/jpg": (text, "not an image: text"),
        "a/2.avif": (text, "not an image: text"),
        "a/2.jfif": (b"<html><body>404", "not an image: HTML page"),
        "a/1.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "undecodable image: HEIC"),
        "a/unknown": (b"\x80\x81", "not an image: unknown kind of file"),
        "a/none": (b"", "empty file"),
        "a/Thumbs.db": (jpeg, "system file"),
        "a/.DS_Store": (jpeg, "system file"),
        "a/1.json": (jpeg, "unread: .json file"),
        "a/1.TXT": (jpeg, "unread: .txt file"),
        "a/1.tar.gz": (jpeg, "unread: .gz file"),
        "a/1.mp4": (jpeg, "unread: .mp4 file"),
        "a/1.jpg.part": (jpeg, "unread: .part file"),
    }


@pytest.mark.parametrize("store", ["disk", "memory://judged"])
def test_images_and_others(contents, store, tmp_path):
    root = str(tmp_path) if store == "disk" else store
    for path, (content, _) in contents.items():
        storage.write_atomic(f"{root}/{path}", content)
    files = {path: len(content) for path, (content, _) in contents.items()}
    sizes, skipped = images(root, files)
    assert sizes == {path: files[path] for path, (_, reason) in contents.items() if reason is None}
    assert {one.key: one.reason for one in skipped} == {
        path: reason for path, (_, reason) in contents.items() if reason is not None
    }
    assert len(skipped) == len(files) - len(sizes)


def test_known_files_are_not_opened(tmp_path):
    """A million captions beside a million images cost nothing: these do not even exist."""
    files = {"a/1.jpg": SIZE, "a/1.json": SIZE, "a/Thumbs.db": SIZE}
    sizes, skipped = images(str(tmp_path), files)
    assert (sizes, len(skipped)) == ({"a/1.jpg": SIZE}, 2)


def test_a_size_that_the_store_does_not_state(tmp_path, photos, encode):
    (tmp_path / "a").write_bytes(encode(photos[0][:9, :9], "PNG"))
    assert images(str(tmp_path), {"a": 0})[0] == {"a": 0}


def test_a_file_of_no_known_kind_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "secret").write_bytes(b"x")

    def refused(url: str, *_: object) -> bytes:
        raise PermissionError(13, os.strerror(13), url)

    monkeypatch.setattr(storage, "read_range", refused)
    assert images(str(tmp_path), {"secret": 1})[1][0].reason == CLOSED


def test_an_error_of_the_store_is_an_error(monkeypatch):
    fsspec.filesystem("memory").pipe("/judged2/x", b"1")

    def broken(url: str, *_: object) -> bytes:
        raise OSError("the store is away")

    monkeypatch.setattr(storage, "read_range", broken)
    with pytest.raises(ValueError, match=r"memory://judged2/x: cannot be opened \(OSError: the store is away\)"):
        images("memory://judged2", {"x": 1})


def test_a_file_that_no_memory_holds_is_named(tmp_path):
    """A sparse file takes no room on the disk."""
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff")
    os.truncate(tmp_path / "1.jpg", 3 << 30)
    sizes, skipped = images(str(tmp_path), {"1.jpg": 3 << 30})
    assert (sizes, skipped[0].reason) == ({}, "larger than 2 GiB")
