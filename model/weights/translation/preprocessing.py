"""Preprocessing as other libraries write it: timm's `pretrained_cfg`, Hugging Face's `preprocessor_config.json`.

Both libraries scale images with Pillow, whose filters always cover all input pixels (antialiasing).
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from model.weights.weights import Interpolation, Preprocessing, WeightsError

K = TypeVar("K")
TIMM: dict[str, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
    "box": "area",
    "random": "bilinear",
}
PILLOW: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}
"""Pillow's numbers of its filters."""
DEFAULT_CROP = 0.875  # timm's part of the shorter side
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # timm's defaults


def from_timm(config: Mapping[str, Any], image_size: int, url: str) -> Preprocessing:
    """Preprocessing of a `pretrained_cfg`; an empty one, of a file without config.json, is the authors'.

    Args:
        image_size: of the network, in pixels.

    Raises:
        WeightsError: another image size, a crop that cannot be held, or values of another kind.
    """
    if not config:
        return Preprocessing(image_size)
    size = config.get("input_size") or (3, image_size, image_size)
    if list(size) != [3, image_size, image_size]:
        raise WeightsError(
            f"{url}: input_size = {size!r}, and the position embeddings are for {image_size} x {image_size}"
        )
    crop, mode = config.get("crop_pct") or DEFAULT_CROP, config.get("crop_mode") or "center"
    if type(crop) not in (int, float) or not 0 < crop <= 1 or mode not in ("center", "squash"):
        raise WeightsError(f"{url}: crop_mode = {mode!r} with crop_pct = {crop!r} cannot be held")
    if mode == "squash" and crop != 1:
        raise WeightsError(
            f"{url}: crop_mode = 'squash' with crop_pct = {crop}: a crop of a squeezed image cannot be held"
        )
    return Preprocessing(
        image_size,
        mean=_three(config.get("mean", IMAGENET_MEAN), "mean", url),
        std=_three(config.get("std", IMAGENET_STD), "std", url),
        interpolation=_filter(TIMM, config.get("interpolation", "bicubic"), "interpolation", url),
        resize=None if mode == "squash" else math.floor(image_size / crop),
    )


def to_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """The keys of `pretrained_cfg` that say how an image becomes the input."""
    size = preprocessing.image_size
    crop = 1.0 if preprocessing.resize is None else size / preprocessing.resize
    while preprocessing.resize is not None and math.floor(size / crop) < preprocessing.resize:
        crop = math.nextafter(crop, 0)  # timm rounds down: 224 / (224 / 249) may be 248.99
    return {
        "input_size": [3, size, size],
        "fixed_input_size": True,
        "interpolation": _code(TIMM, preprocessing.interpolation),
        "crop_pct": crop,
        "crop_mode": "squash" if preprocessing.resize is None else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def from_huggingface(config: Mapping[str, Any], image_size: int, url: str) -> Preprocessing:
    """Preprocessing of a `preprocessor_config.json`; an empty one has the defaults of ViTImageProcessor.

    Args:
        image_size: of the network, in pixels. It counts where the file names another square.

    Raises:
        WeightsError: a shape of images that cannot be held, or values of another kind.
    """
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if type(scale) not in (int, float) or not 0 < scale < 1e3 or not math.isfinite(scale):
        raise WeightsError(f"{url}: rescale_factor = {scale!r} is no positive number")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean = _three(config.get("image_mean", (0.5,) * 3), "image_mean", url)
        std = _three(config.get("image_std", (0.5,) * 3), "image_std", url)
    if not math.isclose(scale * 255, 1, rel_tol=1e-6):  # pixels in [0, 255 scale], not in [0, 1]
        mean, std = (
            _three([m / (255 * scale) for m in mean], "", url),
            _three([s / (255 * scale) for s in std], "", url),
        )
    size = config.get("size", image_size)
    resize = size.get("shortest_edge") if isinstance(size, dict) else None
    if resize is not None and not config.get("do_center_crop"):
        raise WeightsError(f"{url}: size = {size!r} without do_center_crop gives images that are not square")
    return Preprocessing(
        image_size,
        mean=mean,
        std=std,
        interpolation=_filter(PILLOW, config.get("resample", 2), "resample", url),
        resize=resize if config.get("do_resize", True) else None,
    )


def to_huggingface(preprocessing: Preprocessing) -> dict[str, Any]:
    """The content of a `preprocessor_config.json`."""
    size = preprocessing.image_size
    square = {"height": size, "width": size}
    if preprocessing.resize is None:
        resized: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
    else:  # a processor that can cut the middle out
        resized = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": preprocessing.resize},
            "do_center_crop": True,
            "crop_size": square,
        }
    return resized | {
        "do_resize": True,
        "resample": _code(PILLOW, preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _three(values: Any, key: str, url: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3 or any(type(v) not in (int, float) for v in values):
        raise WeightsError(f"{url}: {key} = {values!r}: not three numbers")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _filter(known: Mapping[Any, Interpolation], code: Any, key: str, url: str) -> Interpolation:
    if isinstance(code, bool) or not isinstance(code, int | str) or code not in known:
        raise WeightsError(f"{url}: {key} = {code!r}: must be one of {', '.join(map(str, known))}")
    return known[code]


def _code(known: Mapping[K, Interpolation], interpolation: Interpolation) -> K:
    return next(code for code, name in known.items() if name == interpolation)
