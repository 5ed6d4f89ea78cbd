"""From an encoded image to the pixels of the model's input: crop, scale, flip.

The augmentation of a sample is a pure function of (seed, epoch, sample id): it does not depend on the number of workers
or on restarts. Every kind of crop is a `Geometry`, so that one routine draws them all.

Scaling is bilinear. If a side shrinks more than twice, bilinear scaling would skip pixels. Then the side is first
averaged down by a power of two: for JPEG inside the decoder, as far as both sides allow, and then by halving. `exact`
scaling is that of the authors' evaluations instead (`exactly_scaled`): whole images at full scale.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

from data.images.decode import decode_window, read_header, reduction
from data.splitmix import Draws, Purpose, key

Crop = Literal["inception", "resize", "resize_crop", "center", "resize_center"]

ASPECT_RATIOS = (3 / 4, 4 / 3)
MAX_ATTEMPTS = 100
CENTER_MARGIN = (256, 224)  # the usual evaluation crop: the shorter side to 256, then the middle 224
MAX_ELONGATION = 8  # of the window of a centre crop: a 20 x 60,000 strip must not become a canvas of a gigabyte


class Geometry(NamedTuple):
    """Scale a window of the image to a canvas, cut a square from the canvas, mirror it or not. All are (y, x)."""

    window_start: tuple[int, int]
    window: tuple[int, int]
    canvas: tuple[int, int]
    cut_start: tuple[int, int]
    flip: bool


@dataclass(frozen=True)
class Augment:
    """The augmentation of a data set's images.

    Attributes:
        crop: "inception": a random window of min_area .. 1 of the area and aspect ratio 3/4 .. 4/3, scaled to the
            square (pre-training); "resize": all of the image, scaled to the square; "resize_crop": scaled to a square
            of `resize` pixels, then a random cut (fine-tuning, ViT paper: 448 to 384); "center": the shorter side
            scaled to `resize` pixels, then the middle (evaluation); "resize_center": all of the image, scaled to a
            square of `resize` pixels, then the middle (the authors' few-shot evaluation, 256 to 224).
        min_area: smallest share of the area that an Inception crop may take.
        flip: mirror half of the samples.
        exact: decode at full scale, and scale by the authors' definition: bilinear without averaging, or for "center"
            by the means of areas (big_vision's `resize_small`).
        resize: pixels, for "resize_crop", "center" and "resize_center". Default: image_size * 256 // 224.

    Raises:
        ValueError: an unknown crop, or a number out of range.
    """

    crop: Crop = "inception"
    min_area: float = 0.05
    flip: bool = False
    resize: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop {self.crop!r} is none of {', '.join(get_args(Crop))}")
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area {self.min_area} is not in (0, 1]")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize {self.resize} is not a number of pixels")

    def check(self, image_size: int) -> None:
        """Refuse a scaled image that is smaller than the square to cut from it.

        Raises:
            ValueError: `resize` is smaller than `image_size`.
        """
        if self.crop in ("resize_crop", "center", "resize_center") and self._resize(image_size) < image_size:
            raise ValueError(f"resize {self.resize} is smaller than the image size {image_size}")

    def geometry(self, size: tuple[int, int], image_size: int, draws: Draws) -> Geometry:
        """The crop of an image of `size` (height, width) to a square of `image_size` pixels."""
        square = (image_size, image_size)
        window_start, window, canvas, cut_start = (0, 0), size, square, (0, 0)
        if self.crop == "inception":
            window_start, window = inception_window(size, self.min_area, draws)
        elif self.crop == "resize_crop":
            side = self._resize(image_size)
            canvas = (side, side)
            cut_start = (draws.integer(side - image_size + 1), draws.integer(side - image_size + 1))
        elif self.crop == "resize_center":
            side = self._resize(image_size)
            canvas, cut_start = (side, side), ((side - image_size) // 2, (side - image_size) // 2)
        elif self.crop == "center":
            longest = MAX_ELONGATION * min(size)
            window = (min(size[0], longest), min(size[1], longest))
            window_start = ((size[0] - window[0]) // 2, (size[1] - window[1]) // 2)
            ratio = self._resize(image_size) / min(size)
            canvas = (round(window[0] * ratio), round(window[1] * ratio))
            cut_start = ((canvas[0] - image_size) // 2, (canvas[1] - image_size) // 2)
        return Geometry(window_start, window, canvas, cut_start, self.flip and draws.integer(2) == 1)

    def render(self, encoded: bytes, out: np.ndarray, *, seed: int, epoch: int, sample_id: int) -> None:
        """Decode an image and draw its crop into `out`, uint8 (image_size, image_size, 3), RGB, contiguous.

        Raises:
            BadSample: the image cannot be decoded; `out` is unchanged.
        """
        header = read_header(encoded)
        draws = Draws(key(Purpose.AUGMENT, seed, epoch, sample_id))
        geometry = self.geometry(header.size, out.shape[0], draws)
        if self.exact:
            window = decode_window(encoded, header, geometry.window_start, geometry.window, 1)
            canvas = exactly_scaled(window, geometry.canvas, areas=self.crop == "center")
            cut(canvas, geometry, out)
            return
        scale = reduction(geometry.window, geometry.canvas) if header.format == "jpeg" else 1
        draw(decode_window(encoded, header, *reduced_window(geometry, scale), scale), geometry, out)

    def _resize(self, image_size: int) -> int:
        return self.resize or image_size * CENTER_MARGIN[0] // CENTER_MARGIN[1]


def inception_window(size: tuple[int, int], min_area: float, draws: Draws) -> tuple[tuple[int, int], tuple[int, int]]:
    """((y, x), (height, width)) of a random window, by TensorFlow's `sample_distorted_bounding_box` (authors' code).

    The aspect ratio is uniform in 3/4 .. 4/3. Then the height is uniform among those with an area within min_area .. 1
    and a window inside the image, and the position is uniform. After 100 failures it is the whole image.
    """
    height, width = size
    least, most = min_area * height * width, height * width
    for _ in range(MAX_ATTEMPTS):
        aspect = draws.uniform(*ASPECT_RATIOS)
        smallest = round(math.sqrt(least / aspect))
        largest = min(round(math.sqrt(most / aspect)), height, math.floor((width + 0.5) / aspect))
        window_height = smallest + draws.integer(largest - smallest + 1) if smallest < largest else largest
        window_width = round(window_height * aspect)
        if window_height > 0 and 0 < window_width <= width and least <= window_height * window_width:
            y, x = draws.integer(height - window_height + 1), draws.integer(width - window_width + 1)
            return (y, x), (window_height, window_width)
    return (0, 0), size


def reduced_window(geometry: Geometry, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The window's ((y, x), (height, width)) in an image that the decoder reduces by `scale`.

    Its edges move to whole pixels of the reduced image: by at most half a pixel there, and at most half a pixel of the
    result. Exact edges need an affine warp, which takes four times as long as the scaling.
    """
    (y, x), (height, width) = geometry.window_start, geometry.window
    return (round(y / scale), round(x / scale)), (max(round(height / scale), 1), max(round(width / scale), 1))


def draw(window: np.ndarray, geometry: Geometry, out: np.ndarray) -> None:
    """Scale `window`, uint8 (height, width, 3), to the canvas; cut `out` from it, mirrored if `geometry` says so."""
    rows, columns = geometry.canvas
    window = averaged(window, (rows, columns))
    if out.shape[:2] == (rows, columns):
        cv2.resize(window, (columns, rows), dst=out, interpolation=cv2.INTER_LINEAR)
        if geometry.flip:
            cv2.flip(out, 1, dst=out)
    else:
        cut(cv2.resize(window, (columns, rows), interpolation=cv2.INTER_LINEAR), geometry, out)


def cut(canvas: np.ndarray, geometry: Geometry, out: np.ndarray) -> None:
    """Cut `out` from a scaled image, mirrored if `geometry` says so."""
    top, left = geometry.cut_start
    np.copyto(out, canvas[top : top + out.shape[0], left : left + out.shape[1]])
    if geometry.flip:
        cv2.flip(out, 1, dst=out)


def exactly_scaled(window: np.ndarray, canvas: tuple[int, int], *, areas: bool) -> np.ndarray:
    """An image scaled by definition, in floating point, and rounded to uint8 (height, width, 3).

    Bilinear: a pixel is interpolated between the four nearest ones around its centre, however much the image shrinks
    (TensorFlow's `resize` without antialias). Areas: a pixel is the mean of the area that it covers, with parts of
    pixels at the edges (TensorFlow's method "area").

    Args:
        window: uint8 (height, width, 3).
        canvas: (height, width) of the result.
        areas: scale by the means of areas.
    """
    if areas and window.shape[0] >= canvas[0] and window.shape[1] >= canvas[1]:
        scaled = cv2.resize(window.astype(np.float32), canvas[::-1], interpolation=cv2.INTER_AREA)
    elif areas:  # OpenCV interpolates what it enlarges
        down, across = (_area_weights(*sides) for sides in zip(window.shape[:2], canvas, strict=True))
        rows = np.tensordot(down, window.astype(np.float32), axes=1)
        scaled = np.tensordot(rows, across, axes=(1, 1)).transpose(0, 2, 1)
    else:
        scaled = cv2.resize(window.astype(np.float32), canvas[::-1], interpolation=cv2.INTER_LINEAR)
    pixels: np.ndarray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _area_weights(side: int, target: int) -> np.ndarray:
    """Weights (target, side) float32: the part of each new pixel that each old one covers."""
    edges = np.arange(target + 1) * (side / target)
    places = np.arange(side)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    weights: np.ndarray = (covered.clip(min=0) * (target / side)).astype(np.float32)
    return weights


def averaged(window: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Average each side down by the least power of two f that leaves it at most twice `target` (height, width).

    The rest of a side, less than f pixels, is cut off half at each end: each edge moves by at most half a pixel of
    the result. Bilinear scaling to exactly half is the average of two pixels, and in OpenCV three to eight times as
    fast as INTER_AREA.
    """
    height, width = window.shape[:2]
    down, across = _halvings(height, target[0]), _halvings(width, target[1])
    if not (down or across):
        return window
    top, left = height % 2**down // 2, width % 2**across // 2
    height, width = height >> down, width >> across
    window = window[top : top + (height << down), left : left + (width << across)]
    for step in reversed(range(max(down, across))):
        half = (width << min(step, across), height << min(step, down))
        window = cv2.resize(window, half, interpolation=cv2.INTER_LINEAR)
    return window


def _halvings(side: int, target: int) -> int:
    """How often a side must be halved until it is at most twice the target."""
    return ((side - 1) // (2 * target)).bit_length()
