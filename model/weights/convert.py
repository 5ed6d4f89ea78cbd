"""From one format of weights to another. What was written is read back and compared before it gets its name.

The target is written into a hidden folder beside its place, so that a failure leaves nothing behind.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import torch
from torch import Tensor

from model.vit import VisionTransformer
from model.weights.containers.state import PYTORCH
from model.weights.export import config_of
from model.weights.formats import FORMATS
from model.weights.load import read
from model.weights.translation.geometry import entries_of, zeros
from model.weights.weights import PLAIN, LazyTensor, LazyTensors, Weights, WeightsError, shape_of

BOUND = 1e-5
"""Largest difference of a logit, as a part of the largest logit."""
SUFFIXES = {".npz": "npz", ".onnx": "onnx", ".safetensors": "timm", **dict.fromkeys(PYTORCH, "timm")}
"""Formats by the suffix of the target; all other names are those of folders."""
DROPPABLE = ("pre_logits", "head")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_OURS = re.compile(
    r"((config|preprocessor_config|model)\.json|README\.md|(model|pytorch_model)[\w.-]*\.(safetensors|bin|json))"
)
"""Names of files in a model's folder, which may be replaced as a whole."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was read back, beside what was meant."""

    tensors: int
    """All of them are equal to the bit."""
    difference: float
    """Largest difference of an output, as a part of the largest output."""
    notes: tuple[str, ...]
    """What the target does not say, a line each."""


def convert(
    source: str,
    target: str,
    *,
    format: str | None = None,
    drop: Collection[str] = (),
    dtype: str = "float32",
    force: bool = False,
) -> list[str]:
    """Writes the model at `source` to `target` in another format.

    Args:
        format: of `FORMATS`; None: by the suffix of `target`, and a folder is our export.
        drop: of `DROPPABLE`. Without pre-logits the model gets a new head of zeros.
        dtype: of the written tensors; of `DTYPES`.
        force: replace what is at `target`.

    Returns:
        A line for each thing that was found or done.

    Raises:
        WeightsError: `source` cannot be read, the format cannot hold it exactly, `target` exists, or what was read back
            differs. Nothing is at `target` then that was not there before.
    """
    name = _format(target, format)
    module = _module(name)
    _require_free(source, target, force)
    weights = read(source)
    lines = [f"read     {source}: {describe(weights, source)}"]
    for part in drop:
        weights, line = _without(weights, part)
        lines.append(line)
    normal = weights.preprocessing
    plain = (normal.mean, normal.std) == ((0.5,) * 3, (0.5,) * 3)
    says_normalisation = name != "npz" and not target.endswith(PYTORCH)
    written = weights if says_normalisation or plain else folded(weights)
    with _staged(target) as staged:
        module.write(written, staged, PLAIN, dtype=DTYPES[dtype])
        found = _compare(weights, written, name, staged, DTYPES[dtype])
    return [
        *lines,
        *(f"note     {note}" for note in found.notes),
        f"checked  {found.tensors} tensors are equal to the bit; outputs differ by at most {found.difference:.2g} x "
        f"the largest (allowed: {BOUND:.0e})",
        f"wrote    {target}: {name}, {dtype}",
    ]


def describe(weights: Weights, url: str) -> str:
    """A model in one line: its variant, sizes, and what makes logits differ."""
    config = config_of(weights, url)
    head = f"{config.num_classes} classes" if "num_classes" in weights.settings else "no head"
    pre_logits = f", pre-logits of {config.representation_size}" if config.representation_size else ""
    return (
        f"{config.name}, {config.image_size} px, {config.depth} x {config.width}, {config.heads} heads, "
        f"{head}{pre_logits}, pool {config.pool}, GELU {config.gelu}, epsilon {config.norm_eps:g}"
    )


def folded(weights: Weights) -> Weights:
    """The same model for pixels in [-1, 1]: mean and std are folded into the patch projection, in float64.

    With x = (p - mean) / std and y = 2p - 1:  W x + b = (W / (2 std)) y + (b + sum of W (0.5 - mean) / std).
    """
    normal = weights.preprocessing
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (normal.mean, normal.std))
    kernel = weights.tensors["embedding.projection.weight"].double()
    bias = weights.tensors["embedding.projection.bias"].double() + (kernel * ((0.5 - mean) / std)).sum((1, 2, 3))
    entries = entries_of(weights.tensors)
    for name, tensor in (("weight", kernel / (2 * std)), ("bias", bias)):
        made = tensor.float()
        entries[f"embedding.projection.{name}"] = LazyTensor(tuple(made.shape), made.dtype, made.detach)
    preprocessing = dataclasses.replace(normal, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return dataclasses.replace(weights, tensors=LazyTensors(entries), preprocessing=preprocessing)


def outputs(weights: Weights, pixels: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Features and, with a head, logits of a model whose tensors are rounded to `dtype`, computed in float32.

    Args:
        pixels: (B, 3, S, S) float32 in [0, 1], normalised here by the model's mean and std.

    Raises:
        WeightsError: tensors are missing, left over or of another shape than the settings say.
    """
    with torch.device("meta"):
        model = VisionTransformer(config_of(weights, "weights")).eval()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if "num_classes" not in weights.settings:
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith("head.")}
    found = {name: shape_of(weights.tensors, name) for name in weights.tensors}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise WeightsError(
            f"{name} should be {wanted.get(name, 'absent')} and is {found.get(name, 'absent')}"
            + (f"; {len(wrong) - 1} other tensors are wrong, too" if len(wrong) > 1 else "")
        )
    model.load_state_dict({name: weights.tensors[name].to(dtype).float() for name in wanted}, strict=False, assign=True)
    with torch.no_grad():
        features = model.features(_normalised(pixels, weights))
        return [features, model.head(features)] if "num_classes" in weights.settings else [features]


def _format(target: str, named: str | None) -> str:
    suffix = os.path.splitext(target)[1]
    by_suffix = SUFFIXES.get(suffix)
    name = named or by_suffix or "export"
    if name not in FORMATS or not FORMATS[name].writes:
        raise WeightsError(f"{name}: no format of this name is written; formats: {', '.join(FORMATS)}")
    if by_suffix not in (None, name) or (by_suffix is None and name in ("npz", "onnx")):
        wanted = f"end with .{name}" if name in ("npz", "onnx") else "be a folder's name"
        raise WeightsError(f"{target}: the target of format {name} must {wanted}")
    return name


def _module(name: str) -> Any:
    try:
        return FORMATS[name].load()
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"format {name} needs the package {error.name}: pip install -r requirements-{name}.txt"
        ) from error


def _require_free(source: str, target: str, force: bool) -> None:
    """Raises `WeightsError` if `target` must not be written."""
    fs, path = fsspec.core.url_to_fs(target)
    same, its = fsspec.core.url_to_fs(source)
    if fs == same and path.rstrip("/") == its.rstrip("/"):
        raise WeightsError(f"{target}: source and target are the same")
    if not force and target.endswith(".onnx") and fs.exists(f"{path}.data"):  # the second file of a large graph
        raise WeightsError(f"{target}.data: exists, and large weights need the name (--force replaces it)")
    if not fs.exists(path):
        return
    if not force:
        raise WeightsError(f"{target}: exists (--force replaces it)")
    others = [os.path.basename(name.rstrip("/")) for name in fs.ls(path, detail=False)] if fs.isdir(path) else []
    if others := sorted(name for name in others if not _OURS.fullmatch(name)):
        raise WeightsError(f"{target}: the folder holds {others[0]}, which is no file of a model; name another folder")


@contextmanager
def _staged(target: str) -> Iterator[str]:
    """The URL to write to. What is there takes the place of `target` at the end; after an error, it is deleted."""
    fs, path = fsspec.core.url_to_fs(target)
    path = path.rstrip("/")
    parent, name = fs._parent(path), path.rpartition("/")[2]
    stage, old = (f"{parent}/.{name}.{os.getpid()}.{kind}" for kind in ("partial", "old"))
    local = "://" not in target
    try:
        fs.makedirs(stage, exist_ok=True)
        staged = f"{stage}/{name}"
        yield staged if local else fs.unstrip_protocol(staged)
        if fs.exists(path):
            fs.mv(path, old, recursive=True)
        for made in fs.ls(stage, detail=False):  # the second file of a large ONNX graph, too
            fs.mv(made, f"{parent}/{made.rstrip('/').rpartition('/')[2]}", recursive=True)
    except WeightsError as error:
        raise WeightsError(str(error).replace(f"{stage}/{name}", path)) from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        if fs.exists(old) and not fs.exists(path):
            fs.mv(old, path, recursive=True)
        for left in (stage, old):
            if fs.exists(left):
                fs.rm(left, recursive=True)


def _without(weights: Weights, part: str) -> tuple[Weights, str]:
    """The model without a part, and a line that says what became of it."""
    entries = {name: e for name, e in entries_of(weights.tensors).items() if not name.startswith(f"{part}.")}
    if len(entries) == len(weights.tensors):
        return weights, f"note     the model has no {part} to drop"
    settings = dict(weights.settings)
    if part == "head":
        del settings["num_classes"]
        line = "dropped  head: the target gives features"
        return dataclasses.replace(weights, settings=settings, tensors=LazyTensors(entries), class_names=None), line
    settings.pop("representation_size", None)
    line = "dropped  pre_logits"
    if "num_classes" in settings:
        config = config_of(weights, "weights")
        entries["head.weight"] = zeros((config.num_classes, config.width), torch.float32)
        entries["head.bias"] = zeros((config.num_classes,), torch.float32)
        line += "; the head, which read its output, is a new one of zeros"
    return dataclasses.replace(weights, settings=settings, tensors=LazyTensors(entries)), line


def _compare(source: Weights, written: Weights, name: str, staged: str, dtype: torch.dtype) -> Comparison:
    """Reads the target back. `written` is `source` after folding.

    Raises:
        WeightsError: a tensor or an output is another.
    """
    module = FORMATS[name].load()
    back: Weights = module.read(staged, PLAIN)
    for key, value in back.settings.items():
        if key != "name" and written.settings.get(key, value) != value:
            raise WeightsError(f"{staged}: {key} = {value!r} was read back, and {written.settings[key]!r} was written")
    if back.tensors.keys() != written.tensors.keys():
        wrong = sorted(back.tensors.keys() ^ written.tensors.keys())
        raise WeightsError(f"{staged}: {', '.join(wrong)}: not the tensors that were written")
    for tensor in written.tensors:
        if not _same(back.tensors[tensor].to(dtype), written.tensors[tensor].to(dtype)):
            raise WeightsError(f"{staged}: {tensor}: other numbers were read back than were written")
    size = config_of(written, "weights").image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    wanted = outputs(written, pixels, dtype)
    pairs = list(zip(outputs(back, pixels, torch.float32), wanted, strict=True))
    if written is not source:  # folding rounds; the dtype is not its matter
        exact = outputs(source, pixels, torch.float32)
        pairs += zip(outputs(written, pixels, torch.float32), exact, strict=True)
    if name == "onnx":
        with _local(staged) as path:
            pairs.append((module.execute(path, _normalised(pixels, written)), wanted[-1]))
    difference = max(_difference(found, meant) for found, meant in pairs)
    if not difference <= BOUND:  # not a number counts, too
        raise WeightsError(
            f"{staged}: outputs differ by {difference:.2g} x the largest, more than {BOUND:.0e}: nothing was kept"
        )
    return Comparison(len(written.tensors), difference, _lost(source, written, back))


def _difference(found: Tensor, meant: Tensor) -> float:
    """The largest difference as a part of the largest number; 0 if both are all zeros."""
    if not bool(meant.isfinite().all()):
        raise WeightsError("outputs of the source are not finite: its weights are damaged")
    largest = float(meant.abs().max())
    return float((found - meant).abs().max()) / largest if largest else float(found.abs().max())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit."""
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _lost(source: Weights, written: Weights, back: Weights) -> tuple[str, ...]:
    """What was written and was not read back, besides what the logits depend on."""
    notes = []
    if written is not source:
        notes.append("mean and std, which the format does not say, are folded into the patch projection")
    kept, meant = dataclasses.asdict(back.preprocessing), dataclasses.asdict(written.preprocessing)
    if lost := [f"{key} = {value}" for key, value in meant.items() if kept[key] != value]:
        notes.append(f"the format does not say how images are scaled: {', '.join(lost)}")
    if written.class_names not in (None, back.class_names):
        notes.append("the format has no class names")
    return tuple(notes)


def _normalised(pixels: Tensor, weights: Weights) -> Tensor:
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (weights.preprocessing.mean, weights.preprocessing.std)
    )
    return (pixels - mean) / std


@contextmanager
def _local(url: str) -> Iterator[str]:
    """A local path of a file and its neighbours."""
    if "://" not in url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        fs, path = fsspec.core.url_to_fs(url)
        for file in fs.ls(fs._parent(path), detail=False):
            fs.get_file(file, os.path.join(folder, file.rpartition("/")[2]))
        yield os.path.join(folder, path.rpartition("/")[2])
