"""Decoding a window of a JPEG alone, through libjpeg-turbo's TurboJPEG 3 interface.

A JPEG's entropy-coded data can only be read from its start. But nothing below the window is read, and above and beside
the window only the codes are: no cosine transform, chroma interpolation or colour conversion. OpenCV, which decodes
everything else here, cannot decode a window.

The library is the one in the PyPI wheel `turbojpeg`, of which nothing else is used, or else the system's. Without one,
callers decode the whole image: the same pixels in more time. ctypes releases Python's lock during each call.
"""

import ctypes
import ctypes.util
from functools import cache
from importlib import metadata

import numpy as np

# turbojpeg.h
_TJINIT_DECOMPRESS = 1
_TJPF_RGB = 0

# Chroma is interpolated between neighbours, so the columns at a window's edges need samples from outside it. What is
# decoded starts at a minimum coded unit: a multiple of 8 or 16 columns, for the subsamplings that callers may pass.
_UNIT = 16


class _Region(ctypes.Structure):
    """tjregion."""

    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class _Factor(ctypes.Structure):
    """tjscalingfactor."""

    _fields_ = (("num", ctypes.c_int), ("denom", ctypes.c_int))


def available() -> bool:
    """Whether there is a library that can decode windows."""
    return _library() is not None


def decode_window(
    encoded: bytes, size: tuple[int, int], scale: int, start: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray | None:
    """Decode a window of a JPEG.

    Args:
        encoded: a complete baseline JPEG of 8 bits, grey or with chroma at full or half resolution.
        size: (height, width) of the image.
        scale: 1, 2, 4 or 8: the image's sides are divided by it, rounded up.
        start: (y, x) of the window, in pixels of the reduced image.
        shape: (height, width) of the window, inside the reduced image.

    Returns:
        uint8 (*shape, 3), RGB, rows not adjacent in memory; None if there is no library, or if it reports an error.
    """
    library = _library()
    if library is None:
        return None
    (y, x), (height, width) = start, shape
    unit = _UNIT // scale
    left = max(x // unit - 1, 0) * unit
    right = min(x + width + unit, -(-size[1] // scale))
    pixels = np.empty((height, right - left, 3), np.uint8)
    # One instance an image (about 10 us): a used one keeps the previous image's tables, and an error for ever.
    handle = library.tj3Init(_TJINIT_DECOMPRESS)
    if not handle:
        raise MemoryError("TurboJPEG has no memory for a decompressor")
    try:
        failed = (
            library.tj3DecompressHeader(handle, encoded, len(encoded))
            or library.tj3SetScalingFactor(handle, _Factor(1, scale))
            or library.tj3SetCroppingRegion(handle, _Region(left, y, right - left, height))
            or library.tj3Decompress8(handle, encoded, len(encoded), pixels.ctypes.data, pixels.strides[0], _TJPF_RGB)
        )
    finally:
        library.tj3Destroy(handle)
    return None if failed else pixels[:, x - left : x - left + width]


@cache
def _library() -> ctypes.CDLL | None:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            library.tj3Init.restype = ctypes.c_void_p
            library.tj3Init.argtypes = [ctypes.c_int]
            library.tj3Destroy.argtypes = [ctypes.c_void_p]
            library.tj3Destroy.restype = None
            library.tj3DecompressHeader.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
            library.tj3SetScalingFactor.argtypes = [ctypes.c_void_p, _Factor]
            library.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, _Region]
            library.tj3Decompress8.argtypes = [
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_int,
            ]
        except (OSError, AttributeError):  # cannot be loaded here, or its version lacks these functions
            continue
        return library
    return None


def _candidates() -> list[str]:
    """Possible paths of the library: beside the wheel's extension module, and where the system's loader looks."""
    try:
        files = metadata.files("turbojpeg") or []
    except metadata.PackageNotFoundError:
        files = []
    paths = [str(file.locate()) for file in files if file.name.startswith("libturbojpeg")]
    system = ctypes.util.find_library("turbojpeg")
    return [*paths, system] if system else paths
