"""`.npz` files: zip archives of numpy arrays, read and written one array at a time.

Nothing of a file is trusted. Arrays of Python objects are never loaded, and what a header claims must agree with the
length of its member and of the file before memory is taken.
"""

import io
import math
import os
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import torch
from torch import Tensor

from model.weights.containers.safetensors import bytes_of, read_into
from model.weights.weights import Files, WeightsError, reporting

ARCHIVE_START = b"PK\x03\x04"
LONGEST_HEADER = 10_000  # bytes of an array's header; numpy writes about 100
HIGHEST_RATIO = 1032  # bytes that one byte of a deflated member can stand for
DTYPES = {  # numpy's codes; numpy has no bfloat16, which is stored as its two bytes
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "V2": torch.bfloat16,
    "u2": torch.bfloat16,
}
NUMPY = {torch.float16: "<f2", torch.float32: "<f4", torch.float64: "<f8", torch.bfloat16: "|V2"}


@dataclass(frozen=True)
class Array:
    """One array of a file."""

    archive: "Archive"
    member: zipfile.ZipInfo
    start: int
    """Bytes of the member before the values."""
    shape: tuple[int, ...]
    """As stored, with the axis of layers."""
    descr: str
    """Numpy's code."""
    dtype: torch.dtype | None
    """None: nothing that holds weights."""
    fortran: bool
    index: int | None = None

    def layer(self, index: int) -> "Array":
        """One entry of the first axis. The whole array stays in memory, because each layer needs it again."""
        return replace(self, index=index)

    def read(self) -> Tensor:
        """Raises `WeightsError` if the file is damaged there."""
        if self.index is None:
            return self.archive.values(self)
        kept = self.archive.kept
        if self.member.filename not in kept:
            kept[self.member.filename] = self.archive.values(self)
        return kept[self.member.filename][self.index].clone()


class Archive:
    """An open file; one thread reads at a time."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self.url = url
        self.file = file
        self.zip = zipfile.ZipFile(file)
        self.lock = threading.Lock()
        self.kept: dict[str, Tensor] = {}

    def values(self, array: Array) -> Tensor:
        """All values of an array."""
        name = array.member.filename
        assert array.dtype is not None
        values = torch.empty(math.prod(array.shape), dtype=array.dtype)
        with reporting(f"{self.url}: {name}"), self.lock, self.zip.open(array.member) as stream:
            stream.read(array.start)
            if values.numel() and not read_into(stream, bytes_of(values)):
                raise WeightsError(f"{self.url}: ends within {name}")
            if stream.read(1):  # the checksum is compared at the end of the member
                raise WeightsError(f"{self.url}: {name} goes on after its last value")
        if array.descr.startswith(">"):
            swapped = values.view(torch.uint8).view(-1, array.dtype.itemsize).flip(1).contiguous()
            values = swapped.view(-1).view(array.dtype)
        if array.fortran:
            return values.view(array.shape[::-1]).permute(*range(len(array.shape) - 1, -1, -1))
        return values.view(array.shape)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file by name, without `.npy`."""

    entries: Mapping[str, Array]
    file: IO[bytes]


def open_arrays(url: str, files: Files) -> Arrays:
    """Names, shapes and dtypes of all arrays; their values are read later.

    Raises:
        WeightsError: no npz file, or a member contradicts its header or the file's length.
    """
    with reporting(url):
        file = files.open_read(url)
        try:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            try:
                archive = Archive(url, file)
            except zipfile.BadZipFile as error:
                raise WeightsError(f"{url}: is no npz file, or is cut short ({error})") from error
            entries: dict[str, Array] = {}
            for member in archive.zip.infolist():
                name = member.filename.removesuffix(".npy")
                if name in entries:
                    raise WeightsError(f"{url}: holds {name} twice")
                if name != member.filename:
                    with reporting(f"{url}: {member.filename}"):
                        entries[name] = _entry(archive, member, length)
        except BaseException:
            file.close()
            raise
    return Arrays(entries, file)


def _entry(archive: Archive, member: zipfile.ZipInfo, length: int) -> Array:
    where = f"{archive.url}: {member.filename}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError(f"{where}: is compressed in a way that numpy does not write")
    ratio = HIGHEST_RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1
    if member.header_offset + member.compress_size > length or member.file_size > ratio * member.compress_size:
        raise WeightsError(f"{where}: claims more bytes than the file has")
    with archive.zip.open(member) as stream:
        magic = stream.read(8)
        wide = magic[6:7] != b"\x01"
        size = int.from_bytes(stream.read(4 if wide else 2), "little")
        if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\x01", b"\x02", b"\x03") or size > LONGEST_HEADER:
            raise WeightsError(f"{where}: is no numpy array")
        text = stream.read(size).decode("latin1")
    start = len(magic) + (4 if wide else 2) + size
    if re.search(r"['\"]descr['\"]\s*:\s*['\"]\|?O", text):
        raise WeightsError(f"{where}: holds Python objects, which could run code; not loaded")
    descr = re.search(r"['\"]descr['\"]\s*:\s*['\"]([<>=|]?)(\w+)['\"]", text)
    order = re.search(r"['\"]fortran_order['\"]\s*:\s*(True|False)", text)
    axes = re.search(r"['\"]shape['\"]\s*:\s*\(([0-9L, ]*)\)", text)
    if descr is None or order is None or axes is None:
        raise WeightsError(f"{where}: has an array of a type that is no number, or a damaged header")
    shape = tuple(int(axis.strip().rstrip("L")) for axis in axes[1].split(",") if axis.strip())
    itemsize = _itemsize(descr[2])
    if len(shape) > 16 or (itemsize is not None and math.prod(shape) * itemsize != member.file_size - start):
        raise WeightsError(f"{where}: its shape {shape} does not agree with its {member.file_size - start:,} bytes")
    dtype = DTYPES.get(descr[2])
    return Array(archive, member, start, shape, descr[1] + descr[2], dtype, order[1] == "True")


def _itemsize(code: str) -> int | None:
    """Bytes of one value; None for codes that are no weights anyway."""
    digits = code[1:]
    return int(digits) if code[:1] in "fiuVcb" and digits.isdecimal() and len(digits) < 4 else None


def write_arrays(
    arrays: Mapping[str, tuple[tuple[int, ...], Callable[[], Tensor]]], url: str, files: Files, *, dtype: torch.dtype
) -> None:
    """Writes arrays of one dtype, reading each when its turn comes. The same arrays give the same bytes.

    Args:
        arrays: shape and reader, by name.

    Raises:
        WeightsError: an array cannot be read, or the file cannot be written.
    """
    with reporting(url), files.open_write(url) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, (shape, read) in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the date of today would change the bytes
            with archive.open(member, "w", force_zip64=True) as stream:
                header = io.BytesIO()
                fields = {"descr": NUMPY[dtype], "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, fields)
                stream.write(header.getvalue())
                stream.write(bytes_of(read().detach().to("cpu", dtype).contiguous()))
