"""What a file of weights holds, whatever its format: settings, tensors, preprocessing, class names.

A format's `read` returns a `Weights`, and `write` takes one. The tensors have the names and layouts of
`VisionTransformer.state_dict()`. They are read from the file one at a time, when they are asked for, so that a model
is converted in the memory of its largest tensor.
"""

import os
import re
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal, NamedTuple, Protocol

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from model.variants import SHAPES, Shape

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class WeightsError(ValueError):
    """A file that cannot be read or written, or weights that do not fit a model. The message is one line.

    Names come from files that may be damaged: characters that cannot be printed are shown as `?`.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(character if character.isprintable() else "?" for character in message))


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input. The defaults are the authors' (ViT paper, code)."""

    image_size: int
    """Side of the square that the model sees, in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0, 1], by channel (red, green, blue)."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides what is left, by channel."""
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """Whether each output pixel covers all input pixels below it when an image shrinks."""
    resize: int | None = None
    """The shorter side before the central crop, in pixels; None: the whole image becomes the square."""
    squash: bool = False
    """With `resize`: the whole image becomes a square of `resize` pixels before the central crop."""

    def __post_init__(self) -> None:
        for key in ("image_size", "resize"):
            value = getattr(self, key)
            if (key != "resize" or value is not None) and (type(value) is not int or value < 1):
                raise WeightsError(f"preprocessing.{key} = {value!r}: must be a positive whole number")
        for key in ("mean", "std"):
            value = getattr(self, key)
            if len(value) != 3 or not all(type(v) in (int, float) and -1e6 < v < 1e6 for v in value):
                raise WeightsError(f"preprocessing.{key} = {value!r}: must be three finite numbers")
        if not all(self.std):
            raise WeightsError(f"preprocessing.std = {self.std!r}: must not be zero")
        if self.interpolation not in Interpolation.__args__:  # type: ignore[attr-defined]
            known = ", ".join(Interpolation.__args__)  # type: ignore[attr-defined]
            raise WeightsError(f"preprocessing.interpolation = {self.interpolation!r}: must be one of {known}")


class LazyTensor(NamedTuple):
    """A tensor in a file: what it is, and how it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name. Each access reads one from its file and keeps nothing.

    Args:
        entries: by name.
        file: closed when the last reference to this mapping is gone.
    """

    def __init__(self, entries: Mapping[str, LazyTensor], file: IO[bytes] | None = None) -> None:
        self.entries = dict(entries)
        if file is not None:
            weakref.finalize(self, file.close)

    def __getitem__(self, name: str) -> Tensor:
        """Raises `WeightsError` if the file is damaged there, `KeyError` for an unknown name."""
        entry = self.entries[name]
        tensor = entry.read()
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise WeightsError(
                f"{name}: {tensor.dtype} {tuple(tensor.shape)} was read, not {entry.dtype} {entry.shape}"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass
class Weights:
    """A trained model, as a file holds it."""

    settings: dict[str, Any]
    """Keyword arguments of `model.create_model` as far as the file determines them: `name`, `image_size`, the shape,
    `pool`, `representation_size`, `gelu`, `norm_eps`. `num_classes` is absent if the file has no head."""
    tensors: Mapping[str, Tensor]
    """By the names of `VisionTransformer.state_dict()`, in its layouts; float16, bfloat16, float32 or float64."""
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    """Name of each class of the head, in the order of the logits."""
    about: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from; anything that JSON holds."""


class Files(Protocol):
    """How bytes are reached by URL. The module `data.storage` is one."""

    def open_read(self, url: str) -> IO[bytes]:
        """A file for reading; it can seek."""

    def open_write(self, url: str) -> AbstractContextManager[IO[bytes]]:
        """A file for writing; missing folders are made."""

    def exists(self, url: str) -> bool:
        """Whether a file or a folder is there."""

    def is_folder(self, url: str) -> bool:
        """Whether a folder is there."""


class PlainFiles:
    """`Files` through fsspec: local paths, gs://, s3://, memory:// ..., without retries.

    A local file appears under its name when it is complete.
    """

    def open_read(self, url: str) -> IO[bytes]:
        """Raises `WeightsError` for a pipe or a device, whose end may never come."""
        fs, path = fsspec.core.url_to_fs(url)
        if isinstance(fs, LocalFileSystem) and not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise WeightsError(f"{url}: is a pipe or a device, not a file")
        opened: IO[bytes] = fs.open(path, "rb")
        return opened

    @contextmanager
    def open_write(self, url: str) -> Iterator[IO[bytes]]:
        """On an error, what was written is deleted."""
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(fs._parent(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}.partial" if isinstance(fs, LocalFileSystem) else path
        try:
            with fs.open(partial, "wb") as file:
                yield file
            if partial != path:
                os.replace(partial, path)
        except BaseException:
            with suppress(FileNotFoundError):
                fs.rm_file(partial)
            raise

    def exists(self, url: str) -> bool:
        fs, path = fsspec.core.url_to_fs(url)
        return bool(fs.exists(path))

    def is_folder(self, url: str) -> bool:
        fs, path = fsspec.core.url_to_fs(url)
        return bool(fs.isdir(path))


PLAIN: Files = PlainFiles()


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turns every error within into a `WeightsError` of one line about `url`."""
    try:
        yield
    except WeightsError as error:
        if url in str(error):
            raise
        raise WeightsError(f"{url}: {error}") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{url}: there is no such file or folder") from error
    except OSError as error:
        raise WeightsError(f"{url}: cannot be opened ({error.strerror or first_line(error)})") from error
    except Exception as error:
        raise WeightsError(f"{url}: is damaged or of another format ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    message = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of one tensor. Lazy tensors are not read."""
    return tensors.entries[name].shape if isinstance(tensors, LazyTensors) else tuple(tensors[name].shape)


def dtype_of(tensors: Mapping[str, Tensor], name: str) -> torch.dtype:
    """The dtype of one tensor. Lazy tensors are not read."""
    return tensors.entries[name].dtype if isinstance(tensors, LazyTensors) else tensors[name].dtype


def settings_of_shape(*, depth: int, width: int, mlp_dim: int, heads: int, patch_size: int) -> dict[str, Any]:
    """Keyword arguments of `create_model` for these sizes: the name of the nearest variant, and every size."""
    shape = Shape(depth, width, mlp_dim, heads)
    nearest = max(SHAPES, key=lambda letter: sum(a == b for a, b in zip(SHAPES[letter], shape, strict=True)))
    return {"name": f"ViT-{nearest}/{patch_size}", "patch_size": patch_size, **shape._asdict()}


def join(folder: str, name: str) -> str:
    """The URL of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def shown(names: Iterable[str], shapes: Callable[[str], tuple[int, ...]]) -> str:
    """Names of tensors with shapes. The same tensor of several blocks is one entry: `blocks.2-11.norm1.bias (8)`."""
    blocks: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name in names:
        found = re.match(r"(.*?(?:blocks?|layers?)[._])(\d{1,9})([./].+)", name)
        start, number, rest = found.groups() if found else (name, "", "")
        blocks.setdefault((start, rest, shapes(name)), []).extend([int(number)] if found else [])
    return ", ".join(
        f"{start}{_ranges(numbers)}{rest} ({' x '.join(map(str, shape)) or 'scalar'})"
        for (start, rest, shape), numbers in blocks.items()
    )


def _ranges(numbers: list[int]) -> str:
    """[0, 2, 3, 4] -> "0,2-4"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
