import threading
import time

import pytest

from data import DataError, bounds
from data.errors import BadSample
from data.packing.source import READ_THREADS, ahead, fingerprint, image_field, read_file


def test_ahead_keeps_the_order_and_bounds_what_is_under_way():
    lock, now, most, begun = threading.Lock(), [0], [0], [0]

    def slow(number: int) -> int:
        with lock:
            begun[0] += 1
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002 * (number % 5))
        with lock:
            now[0] -= 1
        return number * number

    results = ahead(slow, range(200))
    assert next(results) == 0
    time.sleep(0.1)
    assert begun[0] <= READ_THREADS + 1  # no more were requested
    assert list(results) == [number * number for number in range(1, 200)]
    assert 1 < most[0] <= READ_THREADS


def test_ahead_passes_errors_on_in_their_place():
    def fails(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = ahead(fails, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_fingerprint_depends_on_every_line():
    assert fingerprint(["a", 1]) == fingerprint(["a", "1"])
    assert len({fingerprint(lines) for lines in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}) == 5
    assert len({fingerprint([name]) for name in ("\udcff", "\ud800", "\ud801", "?")}) == 4  # no UTF-8, no text


def test_read_file(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    assert (read_file(f"{tmp_path}/a"), read_file(f"{tmp_path}/a", 2, 5)) == (b"0123456789", b"234")
    with pytest.raises(DataError, match="/b: missing for the process that packs it"):
        read_file(f"{tmp_path}/b")


def test_image_field_goes_by_content(photos, encode):
    for name, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        content = encode(photos[0], name)
        assert image_field(content) == (extension, content)
    assert image_field(encode(photos[0], "BMP"))[0] == "png"
    for content, cause in (
        (b"", "empty image"),
        (b"text", "not an image: text"),
        (b"<!DOCTYPE html><p>404", "not an image: HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "undecodable image: HEIC"),
        (b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "undecodable image: BMP cut short"),
        (b"\x80\x81\0", "undecodable image"),
    ):
        with pytest.raises(BadSample) as refused:
            image_field(content)
        assert refused.value.cause == cause


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF"])
def test_images_cut_short_are_refused_and_bytes_after_their_end_are_not(name, photos, encode):
    """As in training, which masks the former."""
    content = encode(photos[0], name)
    for length in (len(content) // 2, len(content) - 2):
        with pytest.raises(BadSample, match=f"undecodable image: {name.replace('EBP', 'ebP')} cut short"):
            image_field(content[:length])
    extension, kept = image_field(content + b"more\n")
    assert kept == (content + b"more\n" if extension != "png" or name == "PNG" else kept)


def test_an_image_that_training_would_not_read_is_not_packed(photos, encode, monkeypatch):
    content = encode(photos[0], "PNG")
    monkeypatch.setattr(bounds, "FIELD_BYTES", len(content))
    assert image_field(content) == ("png", content)
    monkeypatch.setattr(bounds, "FIELD_BYTES", len(content) - 1)
    for refused in (content, encode(photos[0], "BMP")):
        with pytest.raises(BadSample, match="image file too long"):
            image_field(refused)
