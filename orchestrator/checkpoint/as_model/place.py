"""Weights of one network in another: the same names, another image size, another head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model import VisionTransformer
from model.layers.position import resize_position_embeddings

POSITION = "embedding.position"
HEADS = ("head.", "pre_logits.")
SHOWN = 4  # names in a line


class Misfit(ValueError):
    """Weights that a network cannot take. The text is one line; nothing was loaded."""


@dataclass(frozen=True)
class Placed:
    """What became of the weights.

    Attributes:
        loaded: names of the parameters that were set.
        new: names of those that keep their initial values.
        left_out: names of the weights that have no place.
        grids: patches a side of the position embeddings, before and after, if they were resized.
    """

    loaded: list[str]
    new: list[str]
    left_out: list[str]
    grids: tuple[int, int] | None

    def lines(self) -> tuple[str, str]:
        """What was loaded, and what was not."""
        resized = "" if self.grids is None else f", position embeddings resized from {_square(self.grids[0])} to "
        resized += "" if self.grids is None else f"{_square(self.grids[1])} patches"
        not_loaded = [f"new: {_some(self.new)}"] if self.new else []
        not_loaded += [f"left out: {_some(self.left_out)}"] if self.left_out else []
        return f"loaded {len(self.loaded)} tensors{resized}", f"not loaded: {'; '.join(not_loaded) or 'nothing'}"


def place(network: VisionTransformer, weights: Mapping[str, Tensor], head: Literal["keep", "new"]) -> Placed:
    """Set a network's parameters, all or none.

    Position embeddings for another number of patches are resized as the authors do (ViT paper, section 3.2).

    Args:
        weights: by the names of our parameters; of the meta device, they are only compared.
        head: "keep" takes the head of the weights; "new" leaves the network's own, and its pre-logits unless the
            weights have some of the same shape.

    Raises:
        Misfit: names or shapes differ; the text lists them.
    """
    own = dict(network.named_parameters())
    values, grids = dict(weights), None
    if POSITION in values and POSITION in own and (grids := _grids(network, values[POSITION], own[POSITION])):
        prefix, side = network.config.num_prefix_tokens, network.config.grid
        values[POSITION] = resize_position_embeddings(values[POSITION], (side, side), prefix)

    free = {name for name in own.keys() | values.keys() if name.startswith(HEADS)} if head == "new" else set()
    kept = {name for name in free if name.startswith("pre_logits.")}
    if all(name in own and name in values and own[name].shape == values[name].shape for name in kept):
        free -= kept
    names = (own.keys() | values.keys()) - free
    if odd := sorted(name for name in names if _shape(own, name) != _shape(values, name)):
        raise Misfit(_difference(odd, own, values, head))
    with torch.no_grad():
        for name in names:
            if not values[name].is_meta:
                own[name].copy_(values[name])
    return Placed(sorted(names), sorted(free & own.keys()), sorted(free & values.keys()), grids)


def _grids(network: VisionTransformer, value: Tensor, own: Tensor) -> tuple[int, int] | None:
    """Patches a side before and after, if the embeddings differ in nothing else; None if they have the same shape."""
    patches = value.shape[1] - network.config.num_prefix_tokens
    side = round(max(patches, 0) ** 0.5)
    if value.shape == own.shape or value.shape[::2] != own.shape[::2] or side * side != patches or not side:
        return None
    return side, network.config.grid


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _difference(odd: list[str], own: Mapping[str, Tensor], values: Mapping[str, Tensor], head: str) -> str:
    if head == "keep" and all(name.startswith(HEADS) for name in odd):
        hint = "; with model.head: new the job gets a head of its own"
    else:
        hint = ""
    sides = {
        "missing": [f"{name} {_shape(own, name)}" for name in odd if name not in values],
        "left over": [f"{name} {_shape(values, name)}" for name in odd if name not in own],
        "of another shape": [
            f"{name} {_shape(values, name)} instead of {_shape(own, name)}"
            for name in odd
            if name in own and name in values
        ],
    }
    return "; ".join(f"{side}: {_some(names)}" for side, names in sides.items() if names) + hint


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _square(side: int) -> str:
    return f"{side} x {side}"
