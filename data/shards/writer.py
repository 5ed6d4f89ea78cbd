"""Writing a shard: the bytes of its tar, and its entry of the index."""

import hashlib
import tarfile
from collections.abc import Mapping
from typing import Self

import numpy as np

from data import storage
from data.errors import DataError
from data.shards import tar
from data.shards.index import STRIDE, Shard


class ShardWriter:
    """Writes one tar as a stream; `close` returns its index entry.

    The bytes depend on the samples alone: times, owners and modes are fixed. Names that ustar cannot hold get pax
    records. A context manager; an exception in it may leave an incomplete tar behind. Every method raises DataError if
    the tar cannot be written.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._name = name
        self._url = storage.join(folder, name)
        with storage.reporting(self._url):
            self._file = storage.open_write(self._url)
        self._hash = hashlib.sha256()
        self._length = 0
        self._samples = 0
        self._last_key: str | None = None
        self._offsets: list[int] = []

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add a sample. Its fields become members `key.extension`, in the given order.

        Raises:
            DataError: the previous sample has the same key. Readers would take the two for one.
        """
        if key == self._last_key:
            raise DataError(
                f"{self._url}: two samples with the key {key!r} follow each other, which readers take for one; "
                "their source must give them different keys"
            )
        self._last_key = key
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
        with storage.reporting(self._url):
            self._file.close()
        offsets = np.array(self._offsets, np.int64)
        return Shard(self._name, self._samples, self._length, self._hash.hexdigest(), offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _put(self, content: bytes) -> None:
        with storage.reporting(self._url):
            self._file.write(content)
        self._hash.update(content)
        self._length += len(content)
