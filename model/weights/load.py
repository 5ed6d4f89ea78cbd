"""Weights from a URL into a model: `read`, `load`, `load_weights`, `place`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.layers.position import resize_position_embeddings
from model.variants import ModelConfigError, vit_config
from model.vit import VisionTransformer
from model.weights.formats import FORMATS
from model.weights.weights import (
    FLOATS,
    PLAIN,
    Files,
    Weights,
    WeightsError,
    dtype_of,
    reporting,
    shape_of,
    shown,
)

Head = Literal["keep", "new"]
Shape = tuple[int, ...]

POSITION, CLASS_TOKEN = "embedding.position", "embedding.class_token"
HEADS = ("head.", "pre_logits.")
UNSEEN = ("heads", "gelu", "norm_eps")  # settings that change the logits and not the shapes


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file. As text: two lines, what was loaded and what was not."""

    loaded: list[str]
    """Parameters that were set."""
    new: list[str]
    """Parameters of the model that the file did not set."""
    left_out: list[str]
    """Tensors of the file that the model has no place for."""
    grids: tuple[int, int] | None
    """Patches a side of the position embeddings in the file and in the model, if they were resized."""

    def lines(self) -> tuple[str, str]:
        """What was loaded, and what was not."""
        resized = ""
        if self.grids is not None:
            (old, new) = self.grids
            resized = f", position embeddings resized from {old} x {old} to {new} x {new} patches"
        rest = [f"new: {', '.join(self.new)}"] if self.new else []
        rest += [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return f"loaded {len(self.loaded)} tensors{resized}", f"not loaded: {'; '.join(rest) or 'nothing'}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def read(url: str, files: Files = PLAIN) -> Weights:
    """The weights at `url`, of any format that can be read. Tensors are read later, one at a time.

    Raises:
        WeightsError: nothing is there, it is of no known format, or it is damaged.
    """
    with reporting(url):
        if not files.exists(url) and not files.is_folder(url):
            raise FileNotFoundError(url)
        readable = [name for name, form in FORMATS.items() if form.reads]
        for name in readable:
            module = FORMATS[name].load()
            if module.recognise(url, files):
                weights: Weights = module.read(url, files)
                return weights
    raise WeightsError(f"{url}: is of none of the formats that can be read ({', '.join(readable)})")


def load(url: str, files: Files = PLAIN) -> VisionTransformer:
    """The model at `url`, built from the file's own configuration, float32, in evaluation mode.

    A file without a head gives a model with a head of zeros, which `model.features` does not use.

    Raises:
        WeightsError: as `read`, or the tensors do not fit the file's own configuration.
    """
    weights = read(url, files)
    with reporting(url):
        if "name" not in weights.settings:
            raise WeightsError(f"{url}: does not say the number of heads, and no known variant has its sizes")
        try:
            config = vit_config(**weights.settings)
        except (ModelConfigError, TypeError) as error:
            raise WeightsError(f"{url}: its settings are of no network ({error})") from error
        if config.depth > len(weights.tensors):  # before so many blocks are made
            raise WeightsError(f"{url}: has {len(weights.tensors)} tensors, too few for {config.depth} blocks")
        with torch.device("meta"):
            model = VisionTransformer(config)
        headless = "num_classes" not in weights.settings
        plan = _plan(model, weights, "new" if headless else "keep", url)
        wrong = [name for name in plan.report.new + plan.report.left_out if not name.startswith("head.")]
        if wrong:
            raise WeightsError(f"{url}: tensors and settings differ in {', '.join(wrong)}")
        values = plan.values(model, weights, url)
        if headless:
            values["head.weight"] = torch.zeros(model.head.weight.shape)
            values["head.bias"] = torch.full(model.head.bias.shape, float(config.head_bias))
        model.load_state_dict(values, assign=True)
    return model.eval()


def load_weights(model: VisionTransformer, url: str, *, head: Head = "keep", files: Files = PLAIN) -> Report:
    """Loads the weights at `url` into `model`, all or nothing. Arguments and result as in `place`.

    Raises:
        WeightsError: as `read` and `place`. The model is unchanged then.
    """
    return place(model, read(url, files), head=head, url=url)


def place(model: VisionTransformer, weights: Weights, *, head: Head = "keep", url: str = "weights") -> Report:
    """Copies weights into a model, all or nothing.

    Position embeddings of another grid are resized as the authors do (ViT paper, section 3.2; `layers/position.py`).

    Args:
        model: changed in place; on the meta device, names and shapes are compared and nothing is read.
        head: "keep" loads the head of the weights. "new" resets the model's head to its initial values. Pre-logits and
            the class token, with its position, may then differ, too: what only the file has is left out, what only
            the model has stays as it is, and the report names both.
        url: of the weights, for messages.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: weights and model do not fit. The message lists what is missing and what is left over on both
            sides, with shapes. Or a tensor is damaged, or not finite. The model is unchanged.
        ValueError: unknown `head`.
    """
    plan = _plan(model, weights, head, url)
    own = dict(model.named_parameters())
    if own[POSITION].is_meta:
        return plan.report
    values = plan.values(model, weights, url)  # all of them, before the first is copied
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
        if head == "new":
            model.head.reset_parameters()
    return plan.report


@dataclass(frozen=True)
class _Plan:
    report: Report
    prefixes: tuple[int, int]
    """Position embeddings without a place in the image: of the file, and of the model."""

    def values(self, model: VisionTransformer, weights: Weights, url: str) -> dict[str, Tensor]:
        """What the model's parameters become, by name; of their dtype."""
        found = {}
        own = dict(model.named_parameters())
        for name in self.report.loaded:
            value = weights.tensors[name]
            if not math.isfinite(value.sum()) and not torch.isfinite(value).all():  # the sum takes no memory
                raise WeightsError(f"{url}: {name} holds values that are not finite")
            if name == POSITION:
                value = self._position(value, own[name], model.config.grid)
            found[name] = value.to(own[name].dtype)
        return found

    def _position(self, value: Tensor, own: Tensor, side: int) -> Tensor:
        before, after = self.prefixes
        if self.report.grids is not None:
            value = resize_position_embeddings(value, (side, side), before)
        if before > after:
            return value[:, before:]
        return torch.cat([own[:, : after - before].to(value), value], dim=1) if after > before else value


def _plan(model: VisionTransformer, weights: Weights, head: Head, url: str) -> _Plan:
    """What to load. Raises `WeightsError` if the weights do not fit."""
    if head not in ("keep", "new"):
        raise ValueError(f"head must be keep or new, not {head!r}")
    own: dict[str, Shape] = {name: tuple(value.shape) for name, value in model.named_parameters()}
    theirs: dict[str, Shape] = {name: shape_of(weights.tensors, name) for name in weights.tensors}
    for name in theirs:
        if (dtype := dtype_of(weights.tensors, name)) not in FLOATS:
            raise WeightsError(f"{url}: {name} is {str(dtype).removeprefix('torch.')}, not floating point")

    prefixes = (int(CLASS_TOKEN in theirs), model.config.num_prefix_tokens)
    pooled_otherwise = prefixes[0] != prefixes[1]
    grids = _grids(theirs.get(POSITION), own[POSITION], prefixes)
    fitting = {name for name in own.keys() & theirs.keys() if own[name] == theirs[name]}
    if grids is not None and (grids[0] != grids[1] or (pooled_otherwise and head == "new")):
        fitting.add(POSITION)

    free: set[str] = set()
    if head == "new":
        free = {name for name in own.keys() | theirs.keys() if name.startswith(HEADS)}
        kept = {name for name in free if name.startswith("pre_logits.")}
        free -= kept if kept <= fitting else set()
        free |= {CLASS_TOKEN} if pooled_otherwise else set()
    elif pooled_otherwise:
        fitting.discard(POSITION)

    odd = (own.keys() | theirs.keys()) - fitting - free
    different = [key for key in UNSEEN if weights.settings.get(key) not in (None, getattr(model.config, key))]
    if odd or different:
        raise WeightsError(
            f"{url}: does not fit the model: {_misfit(model, weights, own, theirs, odd, different, head)}"
        )
    loaded = [name for name in own if name in fitting - free]
    new, left_out = [n for n in own if n in free], [n for n in theirs if n in free]
    if pooled_otherwise:
        (left_out if prefixes[0] else new).append(f"{POSITION} of the class token")
    resized = grids if grids is not None and grids[0] != grids[1] else None
    return _Plan(Report(loaded, new, left_out, resized), prefixes)


def _grids(theirs: Shape | None, own: Shape, prefixes: tuple[int, int]) -> tuple[int, int] | None:
    """Patches a side in the file and in the model; None if the embeddings differ in more."""
    if theirs is None or len(theirs) != 3 or theirs[0] != 1 or theirs[2] != own[2]:
        return None
    old, new = (math.isqrt(max(shape[1] - prefix, 0)) for shape, prefix in zip((theirs, own), prefixes, strict=True))
    return (old, new) if old and old * old == theirs[1] - prefixes[0] else None


def _misfit(
    model: VisionTransformer,
    weights: Weights,
    own: Mapping[str, Shape],
    theirs: Mapping[str, Shape],
    odd: set[str],
    different: list[str],
    head: Head,
) -> str:
    """The differences on one line."""
    parts = [f"{key} is {weights.settings[key]}, and {getattr(model.config, key)} in the model" for key in different]
    if missing := [name for name in own if name in odd and name not in theirs]:
        parts.append(f"missing in the file: {shown(missing, own.__getitem__)}")
    if left_over := [name for name in theirs if name in odd and name not in own]:
        parts.append(f"left over in the file: {shown(left_over, theirs.__getitem__)}")
    if reshaped := [name for name in own if name in odd and name in theirs]:
        there = shown(reshaped, theirs.__getitem__)
        parts.append(f"of another shape: {there} in the file, {shown(reshaped, own.__getitem__)} in the model")
    if head == "keep" and odd and all(name.startswith((*HEADS, CLASS_TOKEN, POSITION)) for name in odd):
        parts.append('with head="new", the model keeps a new head')
    return "; ".join(parts)
