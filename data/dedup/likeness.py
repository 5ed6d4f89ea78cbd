"""Whether two pictures that a perceptual hash takes for one show the same thing.

A hash of the lowest frequencies mistakes a dark corner below a plain sky for any other. Copies agree in their details,
too, once they lie exactly on each other. So the two thumbnails are registered, from the crops that the hashes suggest
to the affine map that fits best (OpenCV's `findTransformECC`: Evangelidis & Psarakis, "Parametric Image Alignment Using
Enhanced Correlation Coefficient Maximization", PAMI 2008), and the correlation of what a blur takes away from each is
their likeness: 1 for the same details, about 0 for others. Brightness and contrast have no part in it.
"""

from contextlib import suppress

import cv2
import numpy as np
from PIL import Image

from data.dedup.phash import VIEWS

SIDE = 64  # pixels of a thumbnail
BLUR = 1.5  # pixels (standard deviation): detail is what this takes away
OVERLAP = 0.5  # of the thumbnail at least has to be common to both
_FIT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
_FIT_BLUR = 3  # pixels, odd
_PIXELS = np.array([[SIDE, 0, -0.5], [0, SIDE, -0.5], [0, 0, 1]])  # from the unit square to places of pixel centres


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A grey picture squeezed to uint8 (64, 64)."""
    kernel = cv2.INTER_AREA if min(picture.size) >= SIDE else cv2.INTER_CUBIC
    return cv2.resize(np.asarray(picture), (SIDE, SIDE), interpolation=kernel)


def likeness(first: np.ndarray, first_view: int, second: np.ndarray, second_view: int, mirror: bool) -> float:
    """How well the details of two thumbnails agree, -1 .. 1.

    Args:
        first, second: uint8 (64, 64), of the whole pictures.
        first_view, second_view: the views (numbers in phash.VIEWS) that looked the same.
        mirror: whether the second one did so mirrored.
    """
    one = first.astype(np.float32)
    two = np.ascontiguousarray(second[:, ::-1] if mirror else second, dtype=np.float32)
    guess = _PIXELS @ _box(second_view, mirror) @ np.linalg.inv(_PIXELS @ _box(first_view, mirror=False))
    warps = [guess[:2].astype(np.float32)]
    with suppress(cv2.error):  # it does not converge: the guess has to do
        _, fit = cv2.findTransformECC(one, two, warps[0].copy(), cv2.MOTION_AFFINE, _FIT, None, _FIT_BLUR)
        warps.insert(0, fit)
    agreements = (_agreement(one, two, warp) for warp in warps)  # one that went astray leaves little in common
    return next((agreement for agreement in agreements if agreement is not None), -1.0)


def _agreement(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> float | None:
    """Correlation of the details where `warp` lays the second on the first; None where that is too little."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    second = cv2.warpAffine(second, warp, (SIDE, SIDE), flags=flags)
    common = cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), warp, (SIDE, SIDE), flags=flags) > 0.99
    common = cv2.erode(common.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # its edge is blurred with nothing
    if common.mean() < OVERLAP:
        return None
    return _correlation(_detail(first)[common], _detail(second)[common])


def _box(view: int, mirror: bool) -> np.ndarray:
    """The map from the unit square of a view to that of the whole picture, (3, 3)."""
    cut, y, x = VIEWS[view]
    left = cut * (1 - x if mirror else x)
    return np.array([[1 - cut, 0, left], [0, 1 - cut, cut * y], [0, 0, 1]])


def _detail(thumb: np.ndarray) -> np.ndarray:
    return thumb - cv2.GaussianBlur(thumb, (0, 0), BLUR)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0
