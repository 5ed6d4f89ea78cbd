"""Image files by name, folder or pattern, on any store, as batches of the network's input.

An image that cannot be read is left out and named; the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data import bounds, storage
from data.errors import BadSample, Cause, DataError
from data.packing.source import ahead
from data.sources.walk import images, walk


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read: its path or URL, and the reason in one line."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Batch:
    """Images for the network.

    Attributes:
        names: of the images that could be read, in the order that was given.
        images: (n, 3, size, size) float32, normalised.
        unread: the others.
    """

    names: list[str]
    images: Tensor
    unread: list[Unread]


def find_images(words: Sequence[str]) -> list[str | Unread]:
    """The images that words name, in the order of the words; those of a folder or a pattern by name.

    Args:
        words: paths or URLs of files, of folders, which are searched to their last folder, and of patterns such as
            `photos/*.jpg`. A file with such a name is a file.
    """
    return [found for word in words for found in _named_by(word)]


def read_batches(named: Sequence[str | Unread], prepare: Callable[[bytes], Tensor], batch_size: int) -> Iterator[Batch]:
    """The images in batches, read and decoded in threads.

    Args:
        named: as `find_images` returns them.
        prepare: encoded image -> (3, size, size) float32. Raises BadSample.
    """

    def read(one: str | Unread) -> Tensor | Unread:
        if isinstance(one, Unread):
            return one
        try:
            return prepare(_content(one))
        except BadSample as error:
            return Unread(one, error.cause)
        except DataError as error:
            return Unread(one, str(error).removeprefix(f"{one}: "))

    names: list[str] = []
    tensors: list[Tensor] = []
    unread: list[Unread] = []
    for one, found in zip(named, ahead(read, named), strict=True):
        if isinstance(found, Unread):
            unread.append(found)
        else:
            names.append(str(one))
            tensors.append(found)
        if len(tensors) == batch_size:
            yield Batch(names, torch.stack(tensors), unread)
            names, tensors, unread = [], [], []
    if tensors:
        yield Batch(names, torch.stack(tensors), unread)
    elif unread:
        yield Batch([], torch.empty(0), unread)


def _named_by(word: str) -> list[str | Unread]:
    try:
        with storage.reporting(word):
            if storage.is_folder(word):
                return _in_folder(word)
            folder, name = storage.parent(word), word.rstrip("/").rpartition("/")[2]
            if not set("*?[") & set(name) or storage.exists(word):
                return [word]
            matching = storage.matching(folder, name)
    except (DataError, FileNotFoundError) as error:
        return [Unread(word, str(error).removeprefix(f"{word}: "))]
    inner = [storage.join(folder, found) if "/" in word else found for found in matching]
    return [one for found in inner for one in _named_by_literal(found)] or [Unread(word, "no file has such a name")]


def _named_by_literal(found: str) -> list[str | Unread]:
    return _in_folder(found) if storage.is_folder(found) else [found]


def _in_folder(folder: str) -> list[str | Unread]:
    found, _ = images(folder, walk(storage.absolute(folder)).files)
    return [f"{folder.rstrip('/')}/{path}" for path in sorted(found)] or [Unread(folder, "has no images in it")]


def _content(url: str) -> bytes:
    try:
        with storage.reporting(url):
            size = storage.size(url)
            if size is not None and size > bounds.IMAGE_BYTES:
                raise BadSample(Cause.LONG_IMAGE)
            return storage.read(url)
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist") from error
