"""Decoding images of any format by Pillow, so that they can be packed as PNG.

The pixels are those of Pillow's convert("RGB"): colours as they are stored, alpha not blended, the first frame. Two
kinds of pixels differ. Grey of 16 bits is cut to 8, as in training: Pillow makes all values above 255 white. Signed,
32-bit and floating-point values are refused: the file does not say which value is white.

Pillow reads only the formats that are named here: some of its others run programs, or recognise files by little. OpenCV
decodes what Pillow does not recognise, such as PAM files.
"""

import io
import warnings

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from data import bounds
from data.errors import BadSample, Cause
from data.images.room import DECODING
from data.images.signature import is_cut_short, why_unusable

_PIXEL_BYTES = 12  # Pillow's image before and after its conversion, and the array
_FORMATS = ("BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L"})
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two tags of a TIFF, and a value of the second

Image.MAX_IMAGE_PIXELS = bounds.PIXELS // 2  # Pillow refuses images of more than twice as many, and warns before
for _kind in (Image.DecompressionBombWarning, UserWarning):  # the latter of damaged TIFFs, which then raise an error
    warnings.filterwarnings("ignore", category=_kind, module="PIL")


def decode_any(content: bytes) -> np.ndarray:
    """The first picture of an image file: uint8 (height, width, 3), RGB.

    Raises:
        BadSample: it cannot be decoded, or it has more than `bounds.PIXELS`; the cause says what the file is.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSample(Cause.HUGE) from error
    except Exception:  # Pillow's plugins raise errors of many types
        return _by_opencv(content)
    if image.format == "GIF" and is_cut_short(content):
        _by_opencv(content)  # raises for a file that ends early; Pillow takes what is there
    with image, DECODING.taking(image.width * image.height * _PIXEL_BYTES):
        try:
            image.load()
            if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM"):
                return _upper_bits(image)
            if image.mode not in ("I", "F"):
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # of many types, for damaged files
            raise BadSample(why_unusable(content)) from error
    raise BadSample(f"{Cause.UNDECODABLE}: {Cause.NO_RANGE}")


def _upper_bits(image: Image.Image) -> np.ndarray:
    """A grey picture of more than 8 bits as RGB."""
    values, bits, inverted = np.asarray(image), 16, False
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS, (16,))[0]  # 12 bits are values below 4,096
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow keeps the values of 16 bits as they are
    grey = (values >> (bits - 8)).astype(np.uint8)
    return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)


def _by_opencv(content: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise BadSample(why_unusable(content)) from error
    if pixels is None:
        raise BadSample(why_unusable(content))
    if pixels.shape[0] * pixels.shape[1] > bounds.PIXELS:
        raise BadSample(Cause.HUGE)
    return pixels
