"""The sizes of a Vision Transformer from the shapes of its tensors, and tensors that are made of others when read."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.variants import SHAPES
from model.weights.weights import LazyTensor, WeightsError, dtype_of, settings_of_shape, shape_of


def settings_of_tensors(tensors: Mapping[str, LazyTensor], heads: int | None, url: str) -> dict[str, Any]:
    """Keyword arguments of `create_model` that tensors of our names determine, with the number of heads.

    Args:
        heads: None if the file does not say it. The variant of exactly these sizes then determines it; without one,
            the settings have neither `heads` nor `name`.

    Raises:
        WeightsError: a tensor that determines a size is missing or has an impossible shape.
    """

    def shape(name: str, *form: int | None) -> tuple[int, ...]:
        """The shape of a tensor; `form` has its fixed sizes, None elsewhere."""
        if name not in tensors:
            raise WeightsError(f"{url}: {name} is missing: not a whole Vision Transformer")
        found = tensors[name].shape
        if len(found) != len(form) or any(size not in (None, own) for size, own in zip(form, found, strict=True)):
            wanted = " x ".join("?" if size is None else str(size) for size in form)
            raise WeightsError(f"{url}: {name} has the shape {' x '.join(map(str, found))}, not {wanted}")
        return found

    width, _, patch_size, _ = shape("embedding.projection.weight", None, 3, None, None)
    shape("embedding.projection.weight", width, 3, patch_size, patch_size)
    prefix = "embedding.class_token" in tensors
    positions = shape("embedding.position", 1, None, width)[1] - prefix
    side = math.isqrt(max(positions, 0))
    if positions < 1 or side * side != positions:
        raise WeightsError(f"{url}: {positions} position embeddings of patches do not make a square grid")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    mlp_dim = shape("blocks.0.mlp.fc1.weight", None, width)[0]
    known = heads or next((s.heads for s in SHAPES.values() if s[:3] == (depth, width, mlp_dim)), None)
    settings = settings_of_shape(depth=depth, width=width, mlp_dim=mlp_dim, heads=known or 1, patch_size=patch_size)
    if known is None:
        del settings["name"], settings["heads"]
    settings |= {"image_size": side * patch_size, "pool": "token" if prefix else "gap"}
    if "pre_logits.weight" in tensors:
        settings["representation_size"] = shape("pre_logits.weight", None, width)[0]
    if "head.weight" in tensors:
        inputs = settings.get("representation_size", width)
        settings["num_classes"] = shape("head.weight", None, inputs)[0]
    return settings


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors as entries that read them when they are asked for."""
    return {
        name: LazyTensor(shape_of(tensors, name), dtype_of(tensors, name), partial(tensors.__getitem__, name))
        for name in tensors
    }


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    """A tensor of zeros that no file holds."""
    return LazyTensor(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))


def joined(parts: list[LazyTensor], dim: int, url: str) -> LazyTensor:
    """Tensors one after another along `dim`. Raises `WeightsError` if their other sizes or dtypes differ."""
    first = parts[0]
    others = [size for n, size in enumerate(first.shape) if n != dim]
    for part in parts:
        if [size for n, size in enumerate(part.shape) if n != dim] != others or part.dtype != first.dtype:
            raise WeightsError(f"{url}: tensors of {first.shape} and {part.shape}, {first.dtype} and {part.dtype}")
    shape = tuple(sum(p.shape[n] for p in parts) if n == dim else size for n, size in enumerate(first.shape))
    return LazyTensor(shape, first.dtype, lambda: torch.cat([part.read() for part in parts], dim))


def part_of(entry: LazyTensor, number: int, parts: int) -> LazyTensor:
    """One of `parts` equal parts of a tensor along its first dimension."""
    shape = (entry.shape[0] // parts, *entry.shape[1:])
    return LazyTensor(shape, entry.dtype, lambda: entry.read().chunk(parts)[number])
