"""One state of a checkpoint as whole tensors: the float32 weights, say, of a run of any number of workers and stage.

Needs no process group, no GPU and no DeepSpeed. Each file is read once from start to end, hashed, and the wanted
fragments are copied to their places, so it takes the memory of the tensors and of one chunk. A bucket is read in place.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from data import storage
from orchestrator.checkpoint.files import piece_key
from orchestrator.checkpoint.manifest import Manifest

CHUNK = 4 * 2**20  # bytes that are read at a time
MOST_HEADER_BYTES = 100 * 2**20  # of a safetensors file, as in its library


class Damaged(ValueError):
    """A file of a checkpoint is not what its manifest says. The text is one line that names the file."""


def read_whole(url: str, manifest: Manifest, state: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read one state of every parameter.

    Args:
        url: the checkpoint's folder.
        manifest: of this checkpoint.
        state: `manifest.WEIGHT` or a key of the optimizer.
        shapes: of the parameters, which are those of the manifest.

    Returns:
        float32 tensors by parameter.

    Raises:
        Damaged: a file does not match its SHA-256, or lacks a fragment; it was read twice.
        FileNotFoundError: the checkpoint was deleted.
        Exception: the store's other errors.
    """
    tensors = {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}
    wanted: dict[str, dict[str, memoryview]] = defaultdict(dict)  # file -> piece -> its bytes
    for of, name, start, numel, file in manifest.fragments:
        if of == state:
            place = tensors[name].view(-1)[start : start + numel]
            wanted[file][piece_key(state, name, start)] = place.numpy().data.cast("B")
    for file, places in wanted.items():
        try:
            _read_file(f"{url}/{file}", file, places, manifest.files[file].sha256)
        except Damaged:
            _read_file(f"{url}/{file}", file, places, manifest.files[file].sha256)
    return tensors


def _read_file(url: str, file: str, places: Mapping[str, memoryview], sha256: str) -> None:
    """Copy pieces of a safetensors file to their places.

    Raises:
        Damaged: the file does not match its digest, or lacks a piece.
    """
    with storage.open_read(url, CHUNK) as stream:
        source = Hashed(stream, file)
        header = read_header(source, file)
        for key, place in places.items():
            _check_piece(header.get(key), key, len(place), file)
        position = 0
        for begin, key in sorted((header[key]["data_offsets"][0], key) for key in places):
            source.skip(begin - position)
            source.copy_to(places[key])
            position = begin + len(places[key])
        source.finish()
        if source.digest.hexdigest() != sha256:
            raise Damaged(f"{file} does not match its SHA-256")


class Hashed:
    """A stream that is hashed while it is read.

    Args:
        stream: where it begins.
        file: its name, for errors.

    Attributes:
        digest: SHA-256 of what was read so far.
    """

    def __init__(self, stream: IO[bytes], file: str) -> None:
        self._stream = stream
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        content = self._stream.read(size)
        self.digest.update(content)
        return content

    def exactly(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            Damaged: the file is shorter.
        """
        content = self.read(size)
        if len(content) < size:
            raise Damaged(f"{self._file} is cut short")
        return content

    def skip(self, size: int) -> None:
        """Pass over so many bytes."""
        if size < 0:
            raise Damaged(f"{self._file}: two tensors overlap")
        while size:
            size -= len(self.exactly(min(size, CHUNK)))

    def copy_to(self, place: memoryview) -> None:
        """Fill `place`."""
        for begin in range(0, len(place), CHUNK):
            part = place[begin : begin + CHUNK]
            part[:] = self.exactly(len(part))

    def finish(self) -> None:
        """Read to the end."""
        while self.read(CHUNK):
            pass


def read_header(source: Hashed, file: str) -> dict[str, Any]:
    """The header of a safetensors file, which begins where `source` is.

    Raises:
        Damaged: it has none.
    """
    length = int.from_bytes(source.exactly(8), "little")
    if length > MOST_HEADER_BYTES:
        raise Damaged(f"{file} is no safetensors file")
    content = source.exactly(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is no safetensors file") from error
    if not isinstance(header, dict):
        raise Damaged(f"{file} is no safetensors file")
    return header


def _check_piece(entry: Any, key: str, size: int, file: str) -> None:
    """Check that the header lists a piece as float32 numbers of this many bytes."""
    try:
        begin, end = entry["data_offsets"]
        is_right = entry["dtype"] == "F32" and 4 * math.prod(entry["shape"]) == size == end - begin and begin >= 0
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise Damaged(f"{file} lacks {key} with {size // 4} float32 numbers")
