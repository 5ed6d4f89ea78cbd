import cv2
import numpy as np
import pytest
from PIL import Image

from data.dedup import phash
from data.dedup.likeness import likeness, thumbnail


@pytest.fixture(scope="session")
def greys(photos) -> list[Image.Image]:
    """The photographs in grey."""
    return [Image.fromarray(photo).convert("L") for photo in photos]


def test_a_picture_is_like_itself(greys):
    for picture in greys:
        assert likeness(thumbnail(picture), 0, thumbnail(picture), 0, mirror=False) == pytest.approx(1, abs=1e-3)


def test_other_pictures_are_not(greys):
    """For every pair of views. (Parts of one photograph may be like each other: they are aligned.)"""
    parts = [picture.crop(box) for picture in greys for box in ((0, 0, 320, 200), (320, 200, 640, 427))]
    for a, first in enumerate(parts):
        for b, second in enumerate(parts):
            for view in range(len(phash.VIEWS)):
                if a != b:
                    assert likeness(thumbnail(first), 0, thumbnail(second), view, mirror=False) < 0.5


@pytest.mark.parametrize("view", range(len(phash.VIEWS)))
@pytest.mark.parametrize("mirror", [False, True])
def test_a_view_is_like_the_whole_from_either_side(greys, view, mirror):
    """The view gives the crop's place, and the alignment refines it."""
    whole = thumbnail(greys[0])
    crop = phash.view(greys[0], view)
    if mirror:
        crop = phash.mirrored(crop)
    assert likeness(thumbnail(crop), 0, whole, view, mirror=mirror) > 0.85
    if not mirror:
        assert likeness(whole, view, thumbnail(crop), 0, mirror=False) > 0.85


def test_a_crop_beside_the_views_is_aligned(greys):
    """3 % cut off at the left and 8 % at the bottom; the nearest view is a corner of 5 %."""
    picture = greys[1]
    width, height = picture.size
    crop = thumbnail(picture.crop((round(0.03 * width), 0, width, round(0.92 * height))))
    unregistered = cv2.GaussianBlur(thumbnail(picture).astype(np.float32), (0, 0), 1.5)
    plain = np.corrcoef((crop - unregistered).ravel(), (thumbnail(picture) - unregistered).ravel())[0, 1]
    assert likeness(crop, 0, thumbnail(picture), 3, mirror=False) > 0.8 > plain + 0.2


@pytest.mark.parametrize("tone", [lambda x: 0.5 * x, lambda x: 40 + 0.8 * x, lambda x: 255 * (x / 255) ** 0.7])
def test_brightness_and_contrast_do_not_matter(greys, tone):
    toned = Image.fromarray(np.rint(tone(np.asarray(greys[0], np.float64))).astype(np.uint8))
    assert likeness(thumbnail(greys[0]), 0, thumbnail(toned), 0, mirror=False) > 0.9


def test_the_same_outline_with_other_details_is_no_copy():
    """Two plain skies, each with a dark shape in the corner: their hashes are nearly the same."""
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:128, :128]
    square, disc = (rows > 95) & (columns < 32), (rows - 127) ** 2 + columns**2 < 36**2
    first, second = (
        Image.fromarray(
            np.clip(150 + 0.3 * rows - 60 * dark + random.normal(0, 5, dark.shape), 0, 255).astype(np.uint8)
        )
        for dark in (square, disc)
    )
    assert (phash.hash_bits(first) ^ phash.hash_bits(second)).bit_count() <= 10
    assert likeness(thumbnail(first), 0, thumbnail(second), 0, mirror=False) < 0.6


def test_flat_pictures_have_no_likeness():
    flat = np.full((64, 64), 90, np.uint8)
    assert likeness(flat, 0, flat, 0, mirror=False) == 0
