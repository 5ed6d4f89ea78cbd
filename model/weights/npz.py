"""The authors' `.npz` files (github.com/google-research/vision_transformer and big_vision), in all their spellings.

P patch, D width, H heads, d = D / H, M MLP, N patches, K classes, R pre-logits:

    cls (1, 1, D)   embedding/{kernel (P, P, 3, D), bias}   Transformer/posembed_input/pos_embedding (1, N + 1, D)
    Transformer/encoderblock_0/LayerNorm_0/{scale, bias}   .../LayerNorm_2/{scale, bias}
    .../MultiHeadDotProductAttention_1/{query, key, value}/{kernel (D, H, d), bias (H, d)}   .../out/kernel (H, d, D)
    .../MlpBlock_3/{Dense_0/kernel (D, M), Dense_1/kernel (M, D)}
    Transformer/encoder_norm/{scale, bias}   pre_logits/{kernel (D, R), bias}   head/{kernel (R or D, K), bias}

Newer files number each kind of layer from zero (LayerNorm_1, MultiHeadDotProductAttention_0, MlpBlock_0), have
`pos_embedding` at the top, or hold all blocks in one `encoderblock` with a leading axis. In front of the names may be
`opt/target/`, `params/` or `params/img/`; names with another beginning (the optimizer's state) are not read.

`pos_embedding` with N entries and a class token: the token contains its position, so the class slot is zero. Without a
class token, the model is pooled, and no entry is a class slot.

The files say nothing about GELU, epsilon or pixels. The authors' are tanh, 1e-6 and [-1, 1].
"""

import math
from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from model.weights.containers.numpy_zip import ARCHIVE_START, Array, Arrays, open_arrays, write_arrays
from model.weights.export import config_of
from model.weights.weights import (
    Files,
    LazyTensor,
    LazyTensors,
    Preprocessing,
    Weights,
    WeightsError,
    reporting,
    settings_of_shape,
    shape_of,
    shown,
)

KERNEL = "embedding/kernel"
POSITIONS = ("Transformer/posembed_input/pos_embedding", "pos_embedding")
BLOCKS = "Transformer/encoderblock"
ATTENTION = ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")  # the older spelling first
NORM2, MLP = ("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0")
AUTHORS = {"gelu": "tanh", "norm_eps": 1e-6}


def recognise(url: str, files: Files) -> bool:
    """Whether `url` is a zip file whose first member is an array, or is called .npz."""
    if files.is_folder(url):
        return False
    if url.endswith(".npz"):
        return True
    with reporting(url), files.open_read(url) as file:
        start = file.read(30)
        return start.startswith(ARCHIVE_START) and file.read(int.from_bytes(start[26:28], "little")).endswith(b".npy")


def read(url: str, files: Files) -> Weights:
    """Raises `WeightsError`: no complete npz file, or its arrays are not those of one Vision Transformer."""
    arrays = open_arrays(url, files)
    with reporting(url):
        layout = _Layout(arrays, url)
        entries = layout.entries()
        layout.check()
    about = {"format": "npz"}
    return Weights(layout.settings, LazyTensors(entries, arrays.file), Preprocessing(layout.image_size), None, about)


class _Layout:
    """The arrays of one network, found by their names; every size follows from a few of them."""

    def __init__(self, arrays: Arrays, url: str) -> None:
        self.arrays, self.url = arrays, url
        self.prefix = self._find_prefix()
        self.used: set[str] = set()
        self.missing: dict[str, tuple[int, ...]] = {}
        self.wrong: list[str] = []
        self.names = {name.removeprefix(self.prefix) for name in arrays.entries if name.startswith(self.prefix)}
        self.stacked, self.depth = self._find_blocks()
        first = f"{BLOCKS}/" if self.stacked else f"{BLOCKS}_0/"
        self.attention, self.norm2, self.mlp = (self._spelling(first, names) for names in (ATTENTION, NORM2, MLP))
        axis = (self.depth,) if self.stacked else ()

        *sides, channels, width = self._shape(KERNEL, 4)
        if channels != 3 or sides[0] != sides[1]:
            raise WeightsError(f"{url}: {KERNEL} {self._shape(KERNEL, 4)} is no projection of square RGB patches")
        self.patch, self.width = sides[0], width
        heads, size = self._shape(f"{first}{self.attention}/query/kernel", 3 + len(axis))[-2:]
        self.heads, self.head_width = heads, size
        self.mlp_dim = self._shape(f"{first}{self.mlp}/Dense_0/kernel", 2 + len(axis))[-1]
        if heads * size != width:
            raise WeightsError(f"{url}: {heads} heads of {size} features do not make the width {width}")

        self.position = self._only("position embeddings", [name for name in POSITIONS if name in self.names])
        self.pooled = "cls" not in self.names
        slots = self._shape(self.position, 3)[1]
        self.folded = not self.pooled and math.isqrt(slots) ** 2 == slots
        patches = slots if self.pooled or self.folded else slots - 1
        grid = math.isqrt(patches)
        if not grid or grid * grid != patches:
            raise WeightsError(f"{url}: {self.position}: {slots} entries are neither a square grid nor one and a class")
        self.slots, self.image_size = slots, grid * self.patch
        self.representation = self._shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in self.names else None
        self.classes = self._shape("head/kernel", 2)[1] if "head/kernel" in self.names else None

    @property
    def settings(self) -> dict[str, object]:
        """Keyword arguments of `create_model`."""
        shape = settings_of_shape(
            depth=self.depth, width=self.width, mlp_dim=self.mlp_dim, heads=self.heads, patch_size=self.patch
        )
        settings = shape | AUTHORS | {"image_size": self.image_size, "pool": "gap" if self.pooled else "token"}
        settings["representation_size"] = self.representation
        return settings | ({} if self.classes is None else {"num_classes": self.classes})

    def entries(self) -> dict[str, LazyTensor]:
        """Every tensor of the network by our names; to be used after `check`."""
        d, out = self.width, {}
        kernel = self._array(KERNEL, (self.patch, self.patch, 3, d))
        out["embedding.projection.weight"] = _entry([kernel], (d, 3, self.patch, self.patch), _convolution)
        out["embedding.projection.bias"] = self._plain("embedding/bias", (d,))
        if not self.pooled:
            out["embedding.class_token"] = self._plain("cls", (1, 1, d))
        position = self._array(self.position, (1, self.slots, d))
        slots = self.slots + self.folded
        out["embedding.position"] = _entry([position], (1, slots, d), _with_slot if self.folded else _first)
        for block in range(self.depth):
            out |= self._block(block)
        out |= self._norm("norm", "Transformer/encoder_norm")
        inputs = d
        if self.representation is not None:
            out |= self._dense("pre_logits", "pre_logits", d, self.representation)
            inputs = self.representation
        if self.classes is not None:
            out |= self._dense("head", "head", inputs, self.classes)
        return out

    def check(self) -> None:
        """Raises `WeightsError` if arrays are missing, left over, of another shape or of another type."""
        shape_of_array = {name: self.arrays.entries[self.prefix + name].shape for name in self.names}
        left_over = sorted(self.names - self.used)
        parts = [f"missing: {shown(self.missing, self.missing.__getitem__)}"] if self.missing else []
        parts += [f"left over: {shown(left_over, shape_of_array.__getitem__)}"] if left_over else []
        parts += self.wrong
        if parts:
            raise WeightsError(f"{self.url}: is not one Vision Transformer of the authors: {'; '.join(parts)}")

    def _block(self, number: int) -> dict[str, LazyTensor]:
        theirs = f"{BLOCKS}/" if self.stacked else f"{BLOCKS}_{number}/"
        ours, d, m = f"blocks.{number}.", self.width, self.mlp_dim
        layer = number if self.stacked else None
        attention, mlp = theirs + self.attention, theirs + self.mlp
        thirds = {
            leaf: [self._array(f"{attention}/{part}/{leaf}", shape, layer) for part in ("query", "key", "value")]
            for leaf, shape in {
                "kernel": (d, self.heads, self.head_width),
                "bias": (self.heads, self.head_width),
            }.items()
        }
        out_kernel = self._array(f"{attention}/out/kernel", (self.heads, self.head_width, d), layer)
        return {
            **self._norm(f"{ours}norm1", f"{theirs}LayerNorm_0", layer),
            f"{ours}attention.qkv.weight": _entry(thirds["kernel"], (3 * d, d), _fused_kernels),
            f"{ours}attention.qkv.bias": _entry(thirds["bias"], (3 * d,), _fused_biases),
            f"{ours}attention.out.weight": _entry([out_kernel], (d, d), _out),
            f"{ours}attention.out.bias": self._plain(f"{attention}/out/bias", (d,), layer),
            **self._norm(f"{ours}norm2", theirs + self.norm2, layer),
            **self._dense(f"{ours}mlp.fc1", f"{mlp}/Dense_0", d, m, layer),
            **self._dense(f"{ours}mlp.fc2", f"{mlp}/Dense_1", m, d, layer),
        }

    def _norm(self, ours: str, theirs: str, layer: int | None = None) -> dict[str, LazyTensor]:
        shape = (self.width,)
        return {
            f"{ours}.weight": self._plain(f"{theirs}/scale", shape, layer),
            f"{ours}.bias": self._plain(f"{theirs}/bias", shape, layer),
        }

    def _dense(
        self, ours: str, theirs: str, inputs: int, outputs: int, layer: int | None = None
    ) -> dict[str, LazyTensor]:
        kernel = self._array(f"{theirs}/kernel", (inputs, outputs), layer)
        return {
            f"{ours}.weight": _entry([kernel], (outputs, inputs), _transposed),
            f"{ours}.bias": self._plain(f"{theirs}/bias", (outputs,), layer),
        }

    def _plain(self, name: str, shape: tuple[int, ...], layer: int | None = None) -> LazyTensor:
        return _entry([self._array(name, shape, layer)], shape, _first)

    def _array(self, name: str, shape: tuple[int, ...], layer: int | None = None) -> Array:
        """The array called `name`, of one layer if all blocks share it. What is wrong with it is noted."""
        whole = shape if layer is None else (self.depth, *shape)
        array = self.arrays.entries.get(self.prefix + name)
        if array is None:
            self.missing[name] = whole
            return self.arrays.entries[self.prefix + KERNEL]
        if name not in self.used:
            self.used.add(name)
            if array.shape != whole:
                self.wrong.append(f"{name} has the shape {array.shape} instead of {whole}")
            if array.dtype is None:
                self.wrong.append(f"{name} is of numpy's type {array.descr!r}, which holds no weights")
        return array if layer is None else array.layer(layer)

    def _shape(self, name: str, axes: int) -> tuple[int, ...]:
        if name not in self.names:
            raise WeightsError(f"{self.url}: lacks the array {self.prefix}{name} of a Vision Transformer")
        shape = self.arrays.entries[self.prefix + name].shape
        if len(shape) != axes or not all(shape):
            raise WeightsError(f"{self.url}: {name} has the shape {shape}; it should have {axes} axes, none empty")
        return shape

    def _find_prefix(self) -> str:
        found = [n.removesuffix(KERNEL) for n in self.arrays.entries if n == KERNEL or n.endswith(f"/{KERNEL}")]
        if not found:
            some = ", ".join(sorted(self.arrays.entries)[:4]) or "none"
            raise WeightsError(
                f"{self.url}: has no array {KERNEL}: no Vision Transformer of the authors (arrays: {some})"
            )
        if len(found) > 1:
            raise WeightsError(f"{self.url}: holds several networks: {', '.join(f'{p}{KERNEL}' for p in found)}")
        return found[0]

    def _find_blocks(self) -> tuple[bool, int]:
        """Whether one set of arrays holds all blocks, and the number of blocks."""
        numbers = set()
        for name in self.names:
            digits = name.removeprefix(f"{BLOCKS}_").partition("/")[0] if name.startswith(f"{BLOCKS}_") else ""
            if digits.isdecimal() and digits.isascii() and len(digits) < 10:
                numbers.add(int(digits))
        stacked = any(name.startswith(f"{BLOCKS}/") for name in self.names)
        if stacked and numbers:
            raise WeightsError(f"{self.url}: has both {BLOCKS}/ and {BLOCKS}_{min(numbers)}/")
        if stacked:
            return True, self._shape(f"{BLOCKS}/LayerNorm_0/scale", 2)[0]
        if not numbers or numbers != set(range(len(numbers))):
            lacking = min(set(range(len(numbers) + 1)) - numbers)
            raise WeightsError(f"{self.url}: lacks {self.prefix}{BLOCKS}_{lacking}/ of {len(numbers)} blocks")
        return False, len(numbers)

    def _spelling(self, block: str, names: tuple[str, ...]) -> str:
        found = [name for name in names if any(known.startswith(f"{block}{name}/") for known in self.names)]
        return self._only(f"{block}{names[0]}", found)

    def _only(self, what: str, found: list[str]) -> str:
        if len(found) != 1:
            raise WeightsError(f"{self.url}: {what}: {'has both ' + ' and '.join(found) if found else 'is missing'}")
        return found[0]


def _entry(arrays: list[Array], shape: tuple[int, ...], convert: Callable[[list[Tensor]], Tensor]) -> LazyTensor:
    dtype = reduce(torch.promote_types, [array.dtype or torch.float32 for array in arrays])

    def read() -> Tensor:
        return convert([array.read() for array in arrays]).to(dtype).contiguous()

    return LazyTensor(shape, dtype, read)


def _first(parts: list[Tensor]) -> Tensor:
    return parts[0]


def _transposed(parts: list[Tensor]) -> Tensor:
    return parts[0].t()


def _convolution(parts: list[Tensor]) -> Tensor:
    return parts[0].permute(3, 2, 0, 1)  # (P, P, 3, D) -> (D, 3, P, P)


def _fused_kernels(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1).t() for part in parts])  # three of (D, H, d) -> (3D, D)


def _fused_biases(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _out(parts: list[Tensor]) -> Tensor:
    return parts[0].flatten(0, 1).t()  # (H, d, D) -> (D, D)


def _with_slot(parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(parts[0][:, :1]), parts[0]], dim=1)


def write(weights: Weights, url: str, files: Files, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a file in the authors' older spelling, in the memory of one tensor. bfloat16 becomes numpy's `V2`.

    Class names, provenance, interpolation and crop have no place in the file.

    Raises:
        WeightsError: the network's GELU, epsilon, mean or std are not the authors', which readers of the file assume;
            nothing is written. Or the file cannot be written.
    """
    config = config_of(weights, url)
    for key, value in AUTHORS.items():
        if (own := getattr(config, key)) != value:
            raise WeightsError(f"{url}: npz cannot hold {key} = {own}: its readers assume the authors' {value}")
    pixels = weights.preprocessing
    if {*pixels.mean, *pixels.std} != {0.5}:
        raise WeightsError(
            f"{url}: npz cannot hold mean {pixels.mean} and std {pixels.std}: its readers assume the authors' 0.5"
        )
    write_arrays(_arrays(weights, config.heads), url, files, dtype=dtype)


def _arrays(weights: Weights, heads: int) -> dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]]:
    """Shape and reader of each array."""
    out: dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]] = {}
    tensors = weights.tensors

    def add(name: str, ours: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        out[name] = (shape, lambda: convert(tensors[ours]).reshape(shape))

    def dense(name: str, ours: str) -> None:
        outputs, inputs = shape_of(tensors, f"{ours}.weight")
        add(f"{name}/kernel", f"{ours}.weight", (inputs, outputs), lambda t: t.t())
        add(f"{name}/bias", f"{ours}.bias", (outputs,))

    def norm(name: str, ours: str) -> None:
        add(f"{name}/scale", f"{ours}.weight", (d,))
        add(f"{name}/bias", f"{ours}.bias", (d,))

    d, _, p, _ = shape_of(tensors, "embedding.projection.weight")
    size = d // heads
    if "embedding.class_token" in tensors:
        add("cls", "embedding.class_token", (1, 1, d))
    add("embedding/kernel", "embedding.projection.weight", (p, p, 3, d), lambda t: t.permute(2, 3, 1, 0))
    add("embedding/bias", "embedding.projection.bias", (d,))
    add(POSITIONS[0], "embedding.position", shape_of(tensors, "embedding.position"))
    depth = sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in tensors)
    for number in range(depth):
        theirs, ours = f"{BLOCKS}_{number}", f"blocks.{number}"
        norm(f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        for third, part in enumerate(("query", "key", "value")):
            name = f"{theirs}/{ATTENTION[0]}/{part}"
            rows = slice(third * d, (third + 1) * d)
            add(f"{name}/kernel", f"{ours}.attention.qkv.weight", (d, heads, size), partial(_third_kernel, rows))
            add(f"{name}/bias", f"{ours}.attention.qkv.bias", (heads, size), partial(_third_bias, rows))
        add(f"{theirs}/{ATTENTION[0]}/out/kernel", f"{ours}.attention.out.weight", (heads, size, d), lambda t: t.t())
        add(f"{theirs}/{ATTENTION[0]}/out/bias", f"{ours}.attention.out.bias", (d,))
        norm(f"{theirs}/{NORM2[0]}", f"{ours}.norm2")
        dense(f"{theirs}/{MLP[0]}/Dense_0", f"{ours}.mlp.fc1")
        dense(f"{theirs}/{MLP[0]}/Dense_1", f"{ours}.mlp.fc2")
    norm("Transformer/encoder_norm", "norm")
    for name in ("pre_logits", "head"):
        if f"{name}.weight" in tensors:
            dense(name, name)
    return out


def _third_kernel(rows: slice, fused: Tensor) -> Tensor:
    return fused[rows].t()


def _third_bias(rows: slice, fused: Tensor) -> Tensor:
    return fused[rows]
