"""Encoded image -> RGB pixels: without Python's lock, at a reduced scale if that suffices, and only the used window.

A JPEG consists of 8x8 frequency blocks. libjpeg can decode 4x4, 2x2 or 1x1 pixels of each directly: an image at 1/2,
1/4 or 1/8 scale in a fraction of the time, already low-pass filtered. Apart from their entropy coding the blocks are
independent, so a window takes less time than the whole image (turbojpeg.py). OpenCV decodes everything else.

Formats: JPEG, PNG and WebP, recognised by their first bytes. OpenCV reads more, but its rarer decoders are tested and
repaired less, and data sets do not need them.

Conventions: the result is always RGB. Grey is repeated. CMYK is converted by (1 - C)(1 - K) and taken as inverted, as
Adobe writes it and all readers expect it. Alpha is dropped: colours stay as stored, not blended. 16 bits are cut to 8.
An animation gives its first picture, or the still one that a PNG may have besides. Colour profiles, gamma and the EXIF
orientation are ignored, as in TensorFlow's decoder, which the authors' code uses. An incomplete file is refused, not
filled up with grey. These are the pixels of Pillow's convert("RGB"); docs/adding.md lists where they differ, and why.
"""

import struct
from typing import Literal, NamedTuple

import cv2
import numpy as np

from data import bounds
from data.errors import BadSample, Cause
from data.images import turbojpeg
from data.images.room import DECODING

_COEFFICIENT_BYTES = 8  # a pixel, at most: 2 for each of 4 components

# IMREAD_REDUCED_COLOR_n includes the BGR bit, which excludes the RGB one; the "grey" flag is the bare scale.
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_FLAGS = {
    1: _RGB,
    2: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 .. SOF15 without DHT, JPG, DAC
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {
    0x00,
    0x01,
}  # without a length: RSTn, TEM; 0 is a stuffed byte, no marker
_NO_FRAME = frozenset({0xD8, 0xD9, 0xDA})  # SOI, EOI, SOS: none may precede the frame header
_BASELINE = frozenset({0xC0, 0xC1})  # sequential, Huffman-coded
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_MOST_PIXELS_A_BYTE = 1024  # in these: each block of 64 pixels takes a bit or more. Twice that, to be sure.
# Sampling factors (horizontal, vertical: 4 bits each) of the components that turbojpeg.py is used for.
_SAMPLINGS = frozenset({b"\x11", b"\x11\x11\x11", b"\x21\x11\x11", b"\x12\x11\x11", b"\x22\x11\x11"})


class Header(NamedTuple):
    """The properties that an image file states.

    Attributes:
        format: by the first bytes. Only JPEG can be decoded at a reduced scale.
        size: (height, width), pixels.
        divisible: a window can be decoded alone, with the same pixels and the same errors as the whole image.
    """

    format: Literal["jpeg", "png", "webp"]
    size: tuple[int, int]
    divisible: bool


def read_header(encoded: bytes) -> Header:
    """Read the header, in a few microseconds: no pixel is decoded.

    Raises:
        BadSample: EMPTY; UNDECODABLE: not a JPEG, PNG or WebP, no readable header, or no pixels; HUGE: more than
            `bounds.PIXELS`.
    """
    if encoded[:2] == _JPEG_START:
        header = _jpeg_header(encoded)
    elif encoded[:8] == _PNG_START:
        header = _png_header(encoded)
    elif encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        header = _webp_header(encoded)
    else:
        raise BadSample(Cause.UNDECODABLE if encoded else Cause.EMPTY)
    height, width = header.size
    if not height or not width:
        raise BadSample(Cause.UNDECODABLE)
    if height * width > bounds.PIXELS:
        raise BadSample(Cause.HUGE)
    return header


def decode(encoded: bytes, scale: int = 1) -> np.ndarray:
    """Decode JPEG, PNG or WebP.

    Args:
        scale: 1; for a JPEG also 2, 4 or 8. The sides are divided by it and rounded up.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        BadSample: as `read_header`; UNDECODABLE also if the file is damaged or incomplete.
    """
    return _decode(encoded, read_header(encoded), scale)


def decode_window(
    encoded: bytes, header: Header, start: tuple[int, int], shape: tuple[int, int], scale: int = 1
) -> np.ndarray:
    """decode(encoded, scale)[y : y + height, x : x + width], bit by bit, in less time for a smaller window.

    Args:
        header: of `encoded`.
        start: (y, x), in pixels of the reduced image.
        shape: (height, width) of the window. Its part outside the image is cut off.

    Returns:
        uint8 (height, width, 3), RGB; rows need not be adjacent in memory.

    Raises:
        BadSample: as `decode`, for every window.
    """
    (y, x), (rows, columns) = start, _reduced(header.size, scale)
    height, width = min(shape[0], rows - y), min(shape[1], columns - x)
    if header.divisible and (height, width) != (rows, columns):
        window = turbojpeg.decode_window(encoded, header.size, scale, start, (height, width))
        if window is not None:
            return window
    return _decode(encoded, header, scale)[y : y + height, x : x + width]


def _decode(encoded: bytes, header: Header, scale: int) -> np.ndarray:
    """The whole image, by OpenCV."""
    if header.format == "png":
        encoded = _still(encoded)
    try:
        with DECODING.taking(decoding_bytes(header, scale)):
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _FLAGS[scale])
    except cv2.error as error:  # such as a side longer than OpenCV allows
        raise BadSample(Cause.UNDECODABLE) from error
    # The crop and the check of its pixels used the header: the image must have the size that it states.
    if image is None or image.shape[:2] != _reduced(header.size, scale):
        raise BadSample(Cause.UNDECODABLE)
    return image


def decoded_bytes(header: Header, scale: int = 1) -> int:
    """Of the pixels of the whole image."""
    height, width = _reduced(header.size, scale)
    return height * width * 3


def decoding_bytes(header: Header, scale: int = 1) -> int:
    """Memory that decoding the whole image takes at most. A progressive JPEG is kept as coefficients, at any scale."""
    coefficients = header.format == "jpeg" and not header.divisible
    kept = header.size[0] * header.size[1] * _COEFFICIENT_BYTES if coefficients else 0
    return kept + 2 * decoded_bytes(header, scale)  # OpenCV holds the pixels twice while it decodes


def reduction(window: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 at which a window of (height, width) pixels still covers `target` pixels."""
    return next((s for s in (8, 4, 2) if window[0] >= target[0] * s and window[1] >= target[1] * s), 1)


def _reduced(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _jpeg_header(encoded: bytes) -> Header:
    """Find the frame header (SOF) as libjpeg does, which skips bytes between segments. Size (0, 0): there is none,
    or it states more pixels than the file's bytes can hold, which libjpeg would fill up with grey for seconds.

    A window can be decoded alone if no content below the window could make the whole image invalid, and if its pixels
    depend only on blocks near it. In a single scan, libjpeg's only error is an end before the last row, which cannot
    come before the file's end marker: there libjpeg stops and fills up. (Files of several scans are read to their end
    for any window.) A progressive image may be smoothed across blocks, so it is decoded whole.
    """
    position, last = 2, len(encoded) - 10
    while 0 < (position := encoded.find(b"\xff", position)) <= last:
        marker = encoded[position + 1]
        if marker in _FRAME_HEADERS:
            precision, height, width, components = struct.unpack_from(">BHHB", encoded, position + 4)
            if marker in _HUFFMAN and height * width > _MOST_PIXELS_A_BYTE * len(encoded):
                break
            sampling = encoded[position + 11 : position + 10 + 3 * components : 3]
            divisible = (
                marker in _BASELINE and precision == 8 and sampling in _SAMPLINGS and encoded.endswith(_JPEG_END)
            )
            return Header("jpeg", (height, width), divisible)
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _NO_FRAME:
            break
        else:
            position += 2 + max(encoded[position + 2] << 8 | encoded[position + 3], 2)
    return Header("jpeg", (0, 0), False)


def _png_header(encoded: bytes) -> Header:
    """The size in the first chunk, IHDR. (0, 0) if there is no IHDR."""
    whole = len(encoded) >= 24 and encoded[12:16] == b"IHDR"
    width, height = struct.unpack_from(">II", encoded, 16) if whole else (0, 0)
    return Header("png", (height, width), False)


def _still(encoded: bytes) -> bytes:
    """A PNG without its animation if its picture is no frame of it: OpenCV would decode the first frame instead."""
    pixels = encoded.find(b"IDAT")
    animation = encoded.find(b"\0\0\0\x08acTL", 33, pixels)  # length and type of the chunk, then 8 bytes and a checksum
    if animation < 0 or encoded.find(b"fcTL", animation, pixels) >= 0:
        return encoded
    return encoded[:animation] + encoded[animation + 20 :]


def _webp_header(encoded: bytes) -> Header:
    """The size of the canvas, or in simple files that of the picture. (0, 0) if there is none."""
    height = width = 0
    chunk = encoded[12:16] if len(encoded) >= 30 else b""
    if chunk == b"VP8 " and encoded[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", encoded, 26))
    elif chunk == b"VP8L" and encoded[20] == 0x2F:
        bits = int.from_bytes(encoded[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8X":
        width, height = (int.from_bytes(encoded[at : at + 3], "little") + 1 for at in (24, 27))
    return Header("webp", (height, width), False)
