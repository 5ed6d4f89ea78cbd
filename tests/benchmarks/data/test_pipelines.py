"""The decoders of the compared loaders."""

import numpy as np
import pytest

from benchmarks.data import sets
from benchmarks.data.pipelines import DECODERS


@pytest.mark.parametrize("number", range(8))
def test_all_decoders_draw_the_same_picture(number: int) -> None:
    """The contenders do the same work: they cut the same window, but filter differently."""
    encoded = sets.photographs(1, seed=number)[0]
    pictures = {}
    for name, decode in DECODERS.items():
        pictures[name] = np.zeros((224, 224, 3), np.uint8)
        decode(encoded, pictures[name], number)
    for name in ("cv2", "ours"):
        difference = np.abs(pictures[name].astype(int) - pictures["pil"]).mean()
        assert difference < 3, name
    moved = np.abs(np.roll(pictures["pil"], 3, axis=1).astype(int) - pictures["pil"]).mean()
    assert moved > 3  # so the bound above would detect a window that is three pixels off
