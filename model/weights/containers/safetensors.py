"""Safetensors files, read and written one tensor at a time.

    8 bytes    length n of the header, little-endian
    n bytes    JSON: {"NAME": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest   the tensors, one after another; offsets count from here

The package `safetensors` needs all tensors in memory to write a file, and a local file to read one lazily.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import IO, Any

import torch
from torch import Tensor

from model.weights.weights import Files, LazyTensor, LazyTensors, WeightsError, reporting, shape_of

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000  # bytes, as in the package `safetensors`
CHUNK = 1 << 24  # bytes read at once
METADATA = "__metadata__"


def read_safetensors(url: str, files: Files) -> tuple[LazyTensors, dict[str, str]]:
    """The tensors of a file, to be read later, and its metadata.

    Raises:
        WeightsError: there is no such file, or its header contradicts itself or the file's length.
    """
    with reporting(url):
        file = files.open_read(url)
        try:
            header, start, end = _read_header(file)
            metadata = header.pop(METADATA, {})
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise WeightsError(f"{url}: is damaged: its metadata is no table of texts")
            lock = threading.Lock()
            entries = {}
            for name, (dtype, shape, begin) in _entries(header, end - start).items():
                entries[name] = LazyTensor(
                    shape, dtype, partial(_read, file, lock, url, name, dtype, shape, start + begin)
                )
        except BaseException as error:
            file.close()
            if isinstance(error, _Broken):
                raise WeightsError(f"{url}: is no complete safetensors file: {error}") from error
            raise
    return LazyTensors(entries, file), metadata


def write_safetensors(
    tensors: Mapping[str, Tensor], url: str, files: Files, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> tuple[int, str]:
    """Writes tensors of one dtype, reading each when its turn comes.

    Args:
        dtype: of the written tensors.

    Returns:
        Size of the file in bytes, and its SHA-256.

    Raises:
        WeightsError: a tensor cannot be read, or the file cannot be written.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    shapes, end = {name: shape_of(tensors, name) for name in tensors}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    digest, size = hashlib.sha256(), 0
    with reporting(url), files.open_write(url) as file:
        for content in (len(text).to_bytes(8, "little"), text):
            digest.update(content)
            size += file.write(content)
        for name, shape in shapes.items():
            tensor = tensors[name].detach().to("cpu", dtype).contiguous()
            if tuple(tensor.shape) != shape:
                raise WeightsError(f"{name}: has another shape than before")
            values = bytes_of(tensor)
            digest.update(values)
            file.write(values)
            size += len(values)
    return size, digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class _Broken(ValueError):
    """What is wrong with a header."""


def _read(
    file: IO[bytes], lock: threading.Lock, url: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], begin: int
) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        with reporting(url), lock:
            file.seek(begin)
            if not read_into(file, bytes_of(tensor)):
                raise WeightsError(f"{url}: ends within {name}")
    return tensor


def read_into(file: IO[bytes], view: memoryview) -> bool:
    """Fills `view` from the file's position. False if the file ends before."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def _read_header(file: IO[bytes]) -> tuple[dict[str, Any], int, int]:
    """The header, where it ends, and where the file ends."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if length < 8 or size > length - 8:
        raise _Broken(f"it has {length:,} bytes, its header should have {size:,}")
    if size > LONGEST_HEADER:
        raise _Broken(f"its header should have {size:,} bytes")
    try:
        header = json.loads(file.read(size).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Broken("its header is no JSON") from error
    if not isinstance(header, dict):
        raise _Broken("its header is no table")
    return header, 8 + size, length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name comes twice")
    return table


def _entries(header: dict[str, Any], size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Dtype, shape and first byte of each tensor. They must fill the `size` bytes after the header exactly."""
    spans, found = [], {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise _Broken(f"{name} has no dtype, shape or place")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            raise _Broken(f"{name} has the dtype {code!r}, not one of {', '.join(DTYPES)}")
        if not _lengths(shape) or len(shape) > 8 or not _lengths(offsets) or len(offsets) != 2:
            raise _Broken(f"{name} has an impossible shape or place")
        begin, end = offsets
        if end - begin != math.prod(shape) * DTYPES[code].itemsize:
            raise _Broken(f"{name} has {end - begin:,} bytes, which is not its shape {shape}")
        spans.append((begin, end, name))
        found[name] = (DTYPES[code], tuple(shape), begin)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise _Broken(f"{name} does not begin where the previous tensor ends")
        position = end
    if position != size:
        raise _Broken(f"its tensors should have {position:,} bytes, and {size:,} are there")
    return found


def _lengths(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
