"""The images of the compared loaders."""

import io

import numpy as np
from PIL import Image

from benchmarks.data import sets


def test_the_images_are_like_photographs() -> None:
    """500x375 pixels at quality 90, all different, as large on disk as such photographs are, and reproducible."""
    encoded = sets.photographs(16, seed=0)
    assert encoded == sets.photographs(16, seed=0)
    assert len(set(encoded)) == 16
    assert 30e3 < np.mean([len(image) for image in encoded]) < 80e3
    quality_90 = io.BytesIO()
    Image.new("RGB", (8, 8)).save(quality_90, "JPEG", quality=90)
    images = [Image.open(io.BytesIO(image)) for image in encoded]
    assert {image.size for image in images} == {(500, 375)}
    assert all(image.quantization == Image.open(quality_90).quantization for image in images)
