"""The Vision Transformer's shapes by name: "ViT-H/14" -> depth 32, width 1280, ...

The letter determines the transformer; the number after the slash is the patch size in pixels. A `ViTConfig` is
validated when it is created, so that an impossible model is refused before anything starts.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple


class ModelConfigError(ValueError):
    """An impossible model. The message is one line.

    Attributes:
        key: the invalid field of `ViTConfig`.
        reason: the message without the key.
        others: what else is impossible about the model.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.reason = message
        self.others: tuple[ModelConfigError, ...] = ()


class Shape(NamedTuple):
    depth: int
    width: int
    mlp_dim: int
    heads: int


# ViT paper, Table 1 (B, L, H); the small ones S and Ti are from the authors' code.
SHAPES = {
    "Ti": Shape(depth=12, width=192, mlp_dim=768, heads=3),
    "S": Shape(depth=12, width=384, mlp_dim=1536, heads=6),
    "B": Shape(depth=12, width=768, mlp_dim=3072, heads=12),
    "L": Shape(depth=24, width=1024, mlp_dim=4096, heads=16),
    "H": Shape(depth=32, width=1280, mlp_dim=5120, heads=16),
}
NAMES = tuple(f"ViT-{letter}/{patch}" for letter in SHAPES for patch in (14, 16, 32))

POOLS = ("token", "gap")
GELUS = ("tanh", "erf")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that determines a Vision Transformer, except the random numbers of its initialisation.

    Raises `ModelConfigError` (a ValueError) for values that are impossible.
    """

    name: str
    image_size: int  # pixels a side; the position embeddings are for this size
    patch_size: int  # pixels a side
    depth: int  # encoder blocks
    width: int  # D: features per token
    mlp_dim: int  # features of the MLP's hidden layer
    heads: int
    num_classes: int
    representation_size: int | None = None  # width of the tanh layer before the head; None = no such layer
    dropout: float = 0.0
    pool: Literal["token", "gap"] = "token"  # what the head sees: the class token, or the mean over all patches
    head_bias: float = 0.0  # initial value; with -10, sigmoid pre-training starts with all probabilities near 0
    gelu: Literal["tanh", "erf"] = "tanh"  # tanh: the authors' approximation; erf: the definition, as in timm
    norm_eps: float = 1e-6  # LayerNorm's epsilon: the authors' and timm's; Hugging Face's default is 1e-12

    def __post_init__(self) -> None:
        errors = list(self._errors())
        if errors:
            errors[0].others = tuple(errors[1:])
            raise errors[0]

    def _errors(self) -> Iterator[ModelConfigError]:
        numbers = [
            *("image_size", "patch_size", "depth", "width", "mlp_dim", "heads", "num_classes"),
            *(["representation_size"] if self.representation_size is not None else []),
        ]
        wrong = [key for key in numbers if not _is_positive_int(getattr(self, key))]
        for key in wrong:
            yield ModelConfigError(key, f"must be a positive whole number, not {getattr(self, key)!r}")
        if not {"width", "heads"} & set(wrong) and self.width % self.heads:
            yield ModelConfigError("heads", f"{self.heads} heads do not divide the width {self.width}")
        if not {"image_size", "patch_size"} & set(wrong):
            try:
                grid_side(self.image_size, self.patch_size)
            except ModelConfigError as error:
                yield error
        for key in ("dropout", "head_bias", "norm_eps"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                yield ModelConfigError(key, f"must be a finite number, not {value!r}")
            elif key == "dropout" and not 0 <= value < 1:
                yield ModelConfigError(key, f"must be at least 0 and less than 1, not {value}")
            elif key == "norm_eps" and value <= 0:
                yield ModelConfigError(key, f"must be positive, not {value}")
        for key, known in (("pool", POOLS), ("gelu", GELUS)):
            if (value := getattr(self, key)) not in known:
                yield ModelConfigError(key, f"must be one of {', '.join(known)}, not {value!r}")

    @property
    def grid(self) -> int:
        """Patches a side of an image of the configured size."""
        return self.image_size // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, or none for pool = "gap"."""
        return 1 if self.pool == "token" else 0

    @property
    def num_tokens(self) -> int:
        """Tokens of an image of the configured size: patches and prefix."""
        return self.grid**2 + self.num_prefix_tokens


def grid_side(image_size: int, patch_size: int) -> int:
    """Patches a side. Raises `ModelConfigError` unless the patches tile the image exactly."""
    if image_size < patch_size or image_size % patch_size:
        below, above = image_size // patch_size * patch_size, -(-image_size // patch_size) * patch_size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ModelConfigError(
            "image_size", f"{image_size} is not a multiple of the patch size {patch_size} (nearest: {nearest})"
        )
    return image_size // patch_size


def vit_config(name: str, num_classes: int = 1000, image_size: int = 224, **overrides: Any) -> ViTConfig:
    """The configuration called `name`, with any field but the name replaced by `overrides`.

    `name` is a letter Ti, S, B, L or H and a patch size: "ViT-H/14", or as loosely as "vit_h14", "H/14", "vit-b-16".
    Fields without an override keep the variant's values: a wider ViT-B has the same MLP. None means no override, so
    that callers can pass optional settings on.

    Raises `ModelConfigError` (a ValueError) for an unknown name or field, and for impossible values.
    """
    letter, patch_size = _parse_name(name)
    fields = {field.name for field in dataclasses.fields(ViTConfig)} - {"name"}
    for key in overrides:
        if key not in fields:
            (nearest,) = difflib.get_close_matches(key, sorted(fields), n=1, cutoff=0)
            raise ModelConfigError(key, f"a ViT has no such setting; the nearest is {nearest}")

    values: dict[str, Any] = {"patch_size": patch_size, "num_classes": num_classes, "image_size": image_size}
    values |= SHAPES[letter]._asdict()
    values |= {key: value for key, value in overrides.items() if value is not None}
    return ViTConfig(name=f"ViT-{letter}/{values['patch_size']}", **values)


OTHER_NAMES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}  # of timm and Hugging Face
OTHERS = re.compile(r"(?:[\w:-]+/)*([a-z0-9]+)[-_]([a-z0-9]+)[-_]patch(\d+)(.*)")
UNLIKE = r"clip|siglip|reg\d|dinov|rms|rope|xp\b|quickgelu|gap|plus|distilled|relpos|rpn|pe[-_]|sam\d|srelpos|ijepa"
"""Words in names of networks with other layers."""
FAMILIES = r"clip|dino|deit|beit|swin|[-_]r\d+|hybrid|eva\d|convnext|mae|patch\d"
"""Parts of names of families of networks that are not ours."""


def _parse_name(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:vit)?[-_ ]?(ti|s|b|l|h)[-_/ ]?([1-9]\d*)", name.strip(), flags=re.IGNORECASE)
    if match is None:
        if other := OTHERS.fullmatch(name.strip().lower()):
            family, size, patch, rest = other.groups()
            plain = family in ("vit", "deit") and size in OTHER_NAMES and not re.search(UNLIKE, rest)
            if plain:
                ours = f"ViT-{OTHER_NAMES[size]}/{patch}"
                text = f"unknown model {name!r}, as timm and Hugging Face call {ours}; use {ours}"
            else:
                text = f"unknown model {name!r}: none of ours is its network"
            raise ModelConfigError("name", text)
        if re.search(FAMILIES, name.lower()):
            raise ModelConfigError("name", f"unknown model {name!r}: none of ours is its network")
        folded = {candidate.lower(): candidate for candidate in NAMES}
        (nearest,) = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0)
        raise ModelConfigError("name", f"unknown model {name!r}; the nearest is {folded[nearest]}")
    letter, patch_size = match.groups()
    return letter.capitalize(), int(patch_size)


def _is_positive_int(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and value >= 1
