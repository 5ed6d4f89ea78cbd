import io

import numpy as np
import pytest
from PIL import Image

from data.errors import BadSample
from data.images.transcode import Transcode


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def overlaps(pixels: int, wanted: int) -> np.ndarray:
    """The share of each of `wanted` pixels that each of `pixels` covers: the rows add up to 1."""
    edges, targets = np.arange(pixels + 1), np.arange(wanted + 1) * pixels / wanted
    low, high = np.maximum(edges[:-1], targets[:-1, None]), np.minimum(edges[1:], targets[1:, None])
    return np.maximum(high - low, 0) * wanted / pixels


def test_shorter_side_shrinks_by_area(photos, encode):
    """427 x 640 to 100 on the shorter side, against the overlap of each output pixel with each input pixel."""
    extension, content = Transcode(resize=100)("png", encode(photos[0], "PNG"))
    image = opened(content)
    assert (extension, image.format, image.size) == ("png", "PNG", (150, 100))
    rows, columns = overlaps(427, 100), overlaps(640, 150)
    reference = np.einsum("yjc,xj->yxc", np.einsum("yi,ijc->yjc", rows, photos[0].astype(float)), columns)
    assert np.abs(np.asarray(image) - reference).max() <= 0.51  # rounding


def test_small_images_of_the_right_format_are_not_touched(photos, encode):
    small = encode(photos[0][:90, :300], "JPEG")
    assert Transcode(resize=100)("jpg", small) == ("jpg", small)
    assert Transcode(resize=90, image_format="jpg")("jpg", small) == ("jpg", small)
    assert Transcode(resize=100, quality=50)("jpg", small)[1] != small


@pytest.mark.parametrize(("wanted", "name"), [("jpg", "JPEG"), ("png", "PNG")])
def test_formats(photos, encode, wanted, name):
    extension, content = Transcode(image_format=wanted)("webp", encode(photos[1], "WEBP", lossless=True))
    image = opened(content)
    assert (extension, image.format) == (wanted, name)
    assert np.abs(np.asarray(image).astype(int) - photos[1]).mean() < (0.001 if wanted == "png" else 4)


def test_quality_is_a_trade(photos, encode):
    encoded = encode(photos[0], "PNG")
    sizes = [len(Transcode(image_format="jpg", quality=quality)("png", encoded)[1]) for quality in (20, 60, 90)]
    assert sizes == sorted(sizes)
    assert len(Transcode(image_format="jpg")("png", encoded)[1]) == sizes[-1]  # 90 by default


def test_long_images_keep_the_short_side(encode):
    content = Transcode(resize=10)("png", encode(np.zeros((20, 3000, 3), np.uint8), "PNG"))[1]
    assert opened(content).size == (1500, 10)


def test_undecodable(encode):
    with pytest.raises(BadSample, match="undecodable image"):
        Transcode(resize=10)("jpg", b"nothing")
