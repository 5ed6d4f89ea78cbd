"""Writing shards, and measuring shards that others wrote: both end in the `Shard` entries of an index."""

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Self

import numpy as np

from data import storage, tar
from data.errors import BadSample, DataError
from data.fields import IMAGE_EXTENSIONS, Labels, labels
from data.index import STRIDE, Shard

SCAN_BYTES = 8 << 20


@dataclass
class Contents:
    """What the samples seen so far hold, for the index's head. Contents of several shards add up."""

    num_classes: int = 0
    multi_label: bool = False
    extensions: set[str] = field(default_factory=set)
    unlabelled: int = 0
    without_image: int = 0

    def add(self, fields: Mapping[str, bytes | memoryview]) -> None:
        self.extensions.update(fields)
        self.without_image += not any(extension in fields for extension in IMAGE_EXTENSIONS)
        try:
            found: Labels = labels(fields)
        except BadSample:
            self.unlabelled += 1
            return
        self.num_classes = max(self.num_classes, *(number + 1 for number in found.classes), 0)
        self.multi_label |= found.is_list

    def update(self, other: "Contents") -> None:
        self.num_classes = max(self.num_classes, other.num_classes)
        self.multi_label |= other.multi_label
        self.extensions |= other.extensions
        self.unlabelled += other.unlabelled
        self.without_image += other.without_image


class ShardWriter:
    """Writes one tar, streaming, and knows its index entry at the end.

    The bytes depend on the samples alone: times, owners and modes are fixed. Names that ustar cannot hold get pax
    records. A context manager; leaving it by an exception may leave an incomplete tar behind.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._name = name
        self._file = storage.open_write(storage.join(folder, name))
        self._hash = hashlib.sha256()
        self._length = 0
        self._samples = 0
        self._offsets: list[int] = []

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add a sample: its fields become members `key.extension`, in the given order."""
        if self._samples % STRIDE == 0:
            self._offsets.append(self._length)
        for extension, content in fields.items():
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(content)
            self._put(header.tobuf(tarfile.PAX_FORMAT))
            self._put(content)
            self._put(bytes(-len(content) % tar.RECORD))
        self._samples += 1

    def close(self) -> Shard:
        """End the archive and return its index entry."""
        self._put(bytes(2 * tar.RECORD))
        self._file.close()
        offsets = np.array(self._offsets, np.int64)
        return Shard(self._name, self._samples, self._length, self._hash.hexdigest(), offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._length += len(content)


def scan_shard(folder: str, name: str) -> tuple[Shard, Contents]:
    """Read one tar from end to end: its index entry, and what its samples hold.

    Raises:
        DataError: it is not a plain tar, it ends too early, or it cannot be read.
        FileNotFoundError: there is none.
    """
    url = storage.join(folder, name)
    contents, offsets, count = Contents(), [], 0
    with storage.reporting(url), storage.open_read(url, SCAN_BYTES) as file:
        hashed = _Hashed(file)
        try:
            for sample in tar.samples(tar.read_members(hashed, SCAN_BYTES)):
                if count % STRIDE == 0:
                    offsets.append(sample.offset)
                contents.add(sample.fields)
                count += 1
        except DataError as error:
            raise DataError(f"{url}: not a readable tar: {error}") from error
    return Shard(name, count, hashed.length, hashed.sha256.hexdigest(), np.array(offsets, np.int64)), contents


class _Hashed:
    """A file that is read once, its length and SHA-256 kept along the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.length = 0

    def read(self, size: int, /) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        self.length += len(content)
        return content
