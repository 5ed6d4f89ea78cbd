"""Likeness: whether two pictures with nearly the same perceptual hash show the same thing.

A hash of the lowest frequencies is nearly the same for all pictures of, say, a plain sky above a dark corner. Copies
also agree in their details, if they lie exactly on each other. So the two thumbnails are aligned: from the crops that
the hashes suggest to the affine map that fits best (OpenCV's `findTransformECC`: Evangelidis & Psarakis, "Parametric
Image Alignment Using Enhanced Correlation Coefficient Maximization", PAMI 2008). Their details are the difference to
their blurred copies, and the correlation of the details is the likeness: 1 for the same details, about 0 for different
ones. It does not depend on brightness and contrast.
"""

from contextlib import suppress

import cv2
import numpy as np
from PIL import Image

from data.dedup.phash import VIEWS

SIDE = 64  # pixels of a thumbnail
BLUR = 1.5  # pixels, standard deviation: the details are the difference to this blur
OVERLAP = 0.5  # least share of the thumbnail that both must have in common
_FIT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
_FIT_BLUR = 3  # pixels, odd
_PIXELS = np.array([[SIDE, 0, -0.5], [0, SIDE, -0.5], [0, 0, 1]])  # from the unit square to places of pixel centres


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A grey picture scaled to uint8 (64, 64)."""
    kernel = cv2.INTER_AREA if min(picture.size) >= SIDE else cv2.INTER_CUBIC
    return cv2.resize(np.asarray(picture), (SIDE, SIDE), interpolation=kernel)


def likeness(first: np.ndarray, first_view: int, second: np.ndarray, second_view: int, mirror: bool) -> float:
    """The likeness of two thumbnails, -1 .. 1.

    Args:
        first, second: uint8 (64, 64), of the whole pictures.
        first_view, second_view: the views with nearly the same hash, by number in phash.VIEWS.
        mirror: whether the second view is mirrored.
    """
    one = first.astype(np.float32)
    two = np.ascontiguousarray(second[:, ::-1] if mirror else second, dtype=np.float32)
    guess = _PIXELS @ _box(second_view, mirror) @ np.linalg.inv(_PIXELS @ _box(first_view, mirror=False))
    warps = [guess[:2].astype(np.float32)]
    with suppress(cv2.error):  # if it does not converge, the guess is used
        _, fit = cv2.findTransformECC(one, two, warps[0].copy(), cv2.MOTION_AFFINE, _FIT, None, _FIT_BLUR)
        warps.insert(0, fit)
    agreements = (_agreement(one, two, warp) for warp in warps)  # a wrong map leaves little overlap
    return next((agreement for agreement in agreements if agreement is not None), -1.0)


def _agreement(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> float | None:
    """Correlation of the details in the overlap, with the second mapped by `warp`; None if the overlap is too small."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    second = cv2.warpAffine(second, warp, (SIDE, SIDE), flags=flags)
    common = cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), warp, (SIDE, SIDE), flags=flags) > 0.99
    common = cv2.erode(common.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the blur at its edge mixes in zeros
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
