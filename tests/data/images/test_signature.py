"""What a file is by its first bytes, with files that real writers made."""

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import wave
import zipfile

import numpy as np
import pytest

from data.images.signature import HEAD_BYTES, is_cut_short, kind, why_unusable

IMAGES = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "PPM": "PNM",
    "JPEG2000": "JPEG 2000",
    "AVIF": "AVIF",
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_that_are_packed(name, mode, photos, encode):
    found = kind(encode(photos[0][:64, :64], name, mode)[:HEAD_BYTES])
    assert (found.name, found.is_packed, found.is_image) == (IMAGES[name], True, True)


def saved(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")


def tarred(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def heard(file: io.BytesIO) -> None:
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", ""))


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table a (b)")
        return connection.serialize()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"

OTHERS = {
    "not an image: Git LFS pointer": LFS,
    "not an image: git-annex pointer": b"/annex/objects/SHA256E-s31390--f50d7ac4c6b9.jpg\n",
    "not an image: HTML page": b"\xef\xbb\xbf\n<!-- saved -->\n<!DOCTYPE HTML>\n<html><body>404",
    "not an image: XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "undecodable image: SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "not an image: JSON text": b'{"error": "not found"}',
    "not an image: text": "héllo\n".encode(),
    "not an image: file of zeros": bytes(10_000),
    "not an image: ZIP archive": saved(zipped),
    "not an image: tar archive": saved(tarred),
    "not an image: gzip file": gzip.compress(b"a"),
    "not an image: bzip2 file": bz2.compress(b"a"),
    "not an image: xz file": lzma.compress(b"a"),
    "not an image: WAV audio": saved(heard),
    "not an image: NumPy array": saved(lambda file: np.save(file, np.zeros(3))),
    "not an image: SQLite database": database(),
    "not an image: MP4 or QuickTime video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "not an image: PDF": b"%PDF-1.4\n",
    "not an image: macOS AppleDouble file": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ",
    "undecodable image: HEIC": b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf",
    "undecodable image: JPEG XL": b"\xff\x0a\xfa\x7f",
    "undecodable image: camera's raw image": b"II*\0\x10\0\0\0CR\x02\0",
    "undecodable image: Photoshop file": b"8BPS\0\x01",
    "undecodable image: icon": b"\0\0\x01\0\x01\0\x10\x10",
    "undecodable image": b"\x80\x81\x82",
}


@pytest.mark.parametrize("reason", OTHERS)
def test_what_is_no_image_is_called_by_its_name(reason):
    assert why_unusable(OTHERS[reason]) == reason
    assert why_unusable(OTHERS[reason][:HEAD_BYTES]) == reason


def test_an_avif_with_the_brands_of_heic_is_an_avif():
    assert kind(b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif\0\0").name == "AVIF"
    assert kind(b"\0\0\0\x10ftypmp42\0\0\0\0avif").name == "MP4 or QuickTime video"  # beyond the end of the list


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_cut_short(name, photos, encode):
    content = encode(photos[0][:64, :64], name)
    assert not is_cut_short(content)
    for length in (len(content) - 1, len(content) // 2, 30):
        assert is_cut_short(content[:length])
        assert why_unusable(content[:length]) == f"undecodable image: {IMAGES[name]} cut short"
    assert why_unusable(content) == f"undecodable image: damaged {IMAGES[name]}"


def test_any_bytes():
    """No content is an error: random bytes, every single byte, and what begins like each kind and ends there."""
    rng = np.random.default_rng(0)
    for length in range(300):
        kind(rng.bytes(length))
    for content in OTHERS.values():
        for length in range(40):
            why_unusable(content[:length])
    assert kind(b"") is None
