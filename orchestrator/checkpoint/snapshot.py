"""What a rank has to save, held still in host memory while training goes on, and written to safetensors files."""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from data import storage
from orchestrator.checkpoint.fragments import WEIGHT, optimizer_state, owned_fragments
from orchestrator.checkpoint.manifest import CheckpointError, File, Part
from orchestrator.engine.step import Engine

FILE_BYTES = 512 * 2**20  # a file ends when it has so many
USABLE = 0.7  # of the memory that is free on the node: the data plane goes on reading ahead
CGROUP = Path("/sys/fs/cgroup")
FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + n) of one state of the flattened parameter `name`: `values`, (n,)."""

    state: str
    name: str
    start: int
    values: Tensor

    @property
    def key(self) -> str:
        """Its name in a safetensors file."""
        return piece_key(self.state, self.name, self.start)


Files = dict[str, list[Piece]]  # file name -> what is in it, in this order


def piece_key(state: str, name: str, start: int) -> str:
    """The name of a piece in its safetensors file."""
    return f"{state}/{name}@{start}"


def owned_files(engine: Engine, rank: int, world_size: int) -> Files:
    """The files that this rank writes, as views of the state itself: training changes them."""
    files: Files = defaultdict(list)
    number, size = 0, 0
    for fragment in owned_fragments(engine):
        for state, tensor in {WEIGHT: fragment.flat, **optimizer_state(engine, fragment.flat)}.items():
            if size >= FILE_BYTES:
                number, size = number + 1, 0
            file = f"rank-{rank:05d}-of-{world_size:05d}.{number:03d}.safetensors"
            files[file].append(Piece(state, fragment.name, fragment.start, fragment.view(tensor)))
            size += 4 * fragment.numel
    return dict(files)


def parameter_sizes(engine: Engine) -> dict[str, int]:
    """Elements of every parameter of the model."""
    # under ZeRO 3 a parameter is empty between uses and `ds_numel` keeps its size
    return {name: int(getattr(p, "ds_numel", p.numel())) for name, p in engine.deepspeed.module.named_parameters()}


def part_of(engine: Engine, files: Files, written: dict[str, File]) -> Part:
    """This rank's contribution to the manifest."""
    fragments = [(p.state, p.name, p.start, p.values.numel(), file) for file, ps in files.items() for p in ps]
    return Part(parameters=parameter_sizes(engine), files=written, fragments=fragments)


class HostBuffer:
    """Host memory for one snapshot, the same for all saves of a run.

    Args:
        device: where the state lives. From a GPU, copies are fast into page-locked memory.
        sharers: processes on this node that take a snapshot at the same time.
    """

    def __init__(self, device: torch.device, sharers: int) -> None:
        self._device, self._sharers = device, sharers
        self._memory = torch.empty(0)

    def hold(self, files: Files) -> Files | None:
        """A copy of the files' contents as they are now; None if the node has no memory for it.

        It is whole when this returns. It stays until the next call.
        """
        needed = sum(piece.values.numel() for pieces in files.values() for piece in pieces)
        if self._memory.numel() < needed:
            if 4 * needed > USABLE * available_memory() / self._sharers:
                return None
            self._allocate(needed)
        held: Files = {}
        offset = 0
        for file, pieces in files.items():
            held[file] = []
            for piece in pieces:
                place = self._memory[offset : offset + piece.values.numel()]
                held[file].append(replace(piece, values=place))
                offset += piece.values.numel()
        sources = [piece.values for pieces in files.values() for piece in pieces]
        places = [piece.values for pieces in held.values() for piece in pieces]
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # DeepSpeed has streams of its own
            for place, source in zip(places, sources, strict=True):
                place.copy_(source, non_blocking=True)
            torch.cuda.synchronize(self._device)
        else:  # numpy's copy does not read what it overwrites, and does not hold Python's lock
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                for _ in threads.map(lambda to, what: np.copyto(to.numpy(), what.numpy()), places, sources):
                    pass
        return held

    def close(self) -> None:
        """Give the memory back."""
        if self._memory.numel() and self._device.type == "cuda":
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = torch.empty(0)

    def _allocate(self, numel: int) -> None:
        self.close()
        self._memory = torch.from_numpy(np.empty(numel, np.float32))  # numpy asks for huge pages, torch does not
        if self._device.type == "cuda":
            # torch's own allocator of page-locked memory rounds up to a power of two
            error = torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), 4 * numel, 0)
            if int(error) != 0:
                log.warning(
                    "a snapshot of %d bytes cannot be page-locked (%s): copies will be slower", 4 * numel, error
                )


def available_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    available = int(psutil.virtual_memory().available)
    limit = CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip().isdigit():
        reclaimable = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((CGROUP / "memory.current").read_text()) - int(reclaimable)
        available = min(available, int(limit.read_text()) - used)
    return max(0, available)


def write_file(path: Path, pieces: list[Piece]) -> File:
    """Write a safetensors file of float32 tensors, on the disk when this returns.

    It is written piece by piece, hashed on the way, from where the pieces lie and without Python's lock: training goes
    on meanwhile. (The library's `save_file` holds the lock while it copies everything once more.)

    Raises:
        CheckpointError: the disk is full; what was written is deleted.
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
        if error.errno in FULL:
            raise disk_full(path, size) from error
        raise
    return File(bytes=size, sha256=digest.hexdigest())


def disk_full(path: Path, size: int) -> CheckpointError:
    """The error that says so."""
    free = shutil.disk_usage(path.parent).free
    return CheckpointError(f"{path.parent} is full: {path.name} needs {size:,} bytes and {free:,} are free")


def staging_folder(run_url: str) -> Path:
    """The folder on this node's disk for files of a run's checkpoints on their way, both ways.

    For a run on local disk it lies in the run's folder, so that moving a file there is a rename.
    """
    if storage.is_local(run_url):
        return Path(storage.resolve(run_url)[1]) / ".staging"
    run = hashlib.sha256(run_url.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"vit-staging-{os.getuid()}-{run}"


def _content(piece: Piece) -> memoryview:
    # a device's memory comes to the host only here, where there was no room for a snapshot
    return piece.values.to("cpu", torch.float32).contiguous().numpy().data.cast("B")


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]  # the kernel takes two gigabytes at most
