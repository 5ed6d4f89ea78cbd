"""Encoded image -> RGB pixels, with OpenCV: outside Python's lock, and JPEG at a reduced scale where that is enough.

A JPEG is stored as 8x8 frequency blocks, of which libjpeg can decode 4x4, 2x2 or 1x1 pixels directly: an image at 1/2,
1/4 or 1/8 scale for a fraction of the time, already low-pass filtered.

Conventions: RGB whatever the file holds (grey is repeated, CMYK converted, alpha dropped, 16 bits cut to 8); the EXIF
orientation is ignored, as TensorFlow's decoder does in the authors' code. An incomplete file is refused, not
filled up with grey.
"""

import struct

import cv2
import numpy as np

from data.errors import BadSample

# IMREAD_REDUCED_COLOR_n includes the BGR bit, which excludes the RGB one; the "grey" flag is the bare scale.
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_FLAGS = {
    1: _RGB,
    2: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 .. SOF15 without DHT, JPG, DAC
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length: RSTn, SOI, TEM


def decode(encoded: bytes, scale: int = 1) -> np.ndarray:
    """Decode JPEG, PNG or WebP.

    Args:
        scale: 1, 2, 4 or 8: the sides are divided by it, rounded up.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        BadSample: empty, truncated, or no image.
    """
    if not encoded:
        raise BadSample("empty image")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _FLAGS[scale])
    except cv2.error as error:  # such as more pixels than OpenCV allows
        raise BadSample("undecodable image") from error
    if image is None:
        raise BadSample("undecodable image")
    return image


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) from a JPEG's frame header, in a few microseconds; None for anything else."""
    if encoded[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", encoded, position + 5)
            return (height, width) if height and width else None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return None


def reduction(window: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 at which a window of (height, width) pixels still covers `target` pixels."""
    return next((s for s in (8, 4, 2) if window[0] >= target[0] * s and window[1] >= target[1] * s), 1)
