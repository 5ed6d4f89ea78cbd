"""The safetensors files of a checkpoint on local disk: contents, writing, digests, and the error for a full disk."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import storage
from orchestrator.checkpoint.manifest import CheckpointError, File

DISK_FULL_ERRNOS = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])  # full disk, used-up quota, file too large


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + n) of one state of a flattened parameter.

    Attributes:
        state: "weight" or a key of the optimizer, such as "exp_avg".
        name: the parameter's.
        values: (n,).
    """

    state: str
    name: str
    start: int
    values: Tensor

    @property
    def key(self) -> str:
        """Its name in a safetensors file."""
        return piece_key(self.state, self.name, self.start)


Files = dict[str, list[Piece]]
"""File name -> its pieces, in their order in the file."""


def piece_key(state: str, name: str, start: int) -> str:
    """The name of a piece in its safetensors file."""
    return f"{state}/{name}@{start}"


def write_file(path: Path, pieces: list[Piece]) -> File:
    """Write a safetensors file of float32 tensors and flush it to disk.

    The pieces are hashed and written one by one, without a copy and without Python's lock, so training continues. (The
    library's `save_file` holds the lock and copies everything first.)

    Raises:
        CheckpointError: the disk is full. The incomplete file is deleted.
    """
    header: dict[str, object] = {}
    end = 0
    for piece in pieces:
        begin, end = end, end + 4 * piece.values.numel()
        header[piece.key] = {"dtype": "F32", "shape": [piece.values.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight

    digest = hashlib.sha256()
    size = 8 + len(text) + end
    try:
        with path.open("wb", buffering=0) as file:
            head = memoryview(len(text).to_bytes(8, "little") + text)
            for content in itertools.chain([head], map(_content, pieces)):
                digest.update(content)
                _write(file.fileno(), content)
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in DISK_FULL_ERRNOS:
            raise disk_full(path, size) from error
        raise
    return File(bytes=size, sha256=digest.hexdigest())


def disk_full(path: Path, size: int) -> CheckpointError:
    """The CheckpointError for a full disk."""
    free = shutil.disk_usage(path.parent).free
    return CheckpointError(f"{path.parent} is full: {path.name} needs {size:,} bytes and {free:,} are free")


def sha256(path: Path, *, fresh: bool = False) -> str:
    """Hex digest of a file; with `fresh`, as it is on the disk now, not in the node's memory."""
    with path.open("rb") as stream:
        if fresh and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def staging_folder(run_url: str) -> Path:
    """The folder on this node's disk for checkpoint files that are being uploaded or restored.

    For a run on local disk it is in the run's folder, so that moving a file into the checkpoint is a rename.
    """
    if storage.is_local(run_url):
        return Path(storage.resolve(run_url)[1]) / ".staging"
    run = hashlib.sha256(run_url.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"vit-staging-{os.getuid()}-{run}"


def clear_staging(folder: Path) -> None:
    """Delete a staging folder with what earlier attempts left in it; of a link, the link alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _content(piece: Piece) -> memoryview:
    # Without room for a snapshot, the values are still on the device.
    return piece.values.to("cpu", torch.float32).contiguous().numpy().data.cast("B")


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]  # one call writes at most two gigabytes
