"""A rank's snapshot: its part of the state, copied to host memory so that training can continue."""

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from orchestrator.checkpoint.files import Files, Piece
from orchestrator.checkpoint.fragments import optimizer_state, owned_fragments, parameter_sizes
from orchestrator.checkpoint.manifest import WEIGHT, File, Part
from orchestrator.engine.memory.available import available_memory
from orchestrator.engine.step import Engine

FILE_BYTES = 512 * 2**20  # size at which a file ends and the next one begins
SNAPSHOT_SHARE = 0.7  # of the node's free memory, for snapshots; the data plane needs some to read ahead

log = logging.getLogger(__name__)


def owned_files(engine: Engine, rank: int, world_size: int) -> Files:
    """This rank's files. Their contents are views of the state itself, which training changes."""
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


def part_of(engine: Engine, files: Files, written: dict[str, File]) -> Part:
    """This rank's part of the manifest.

    Args:
        written: digests by file name.
    """
    fragments = [(p.state, p.name, p.start, p.values.numel(), file) for file, ps in files.items() for p in ps]
    return Part(parameters=parameter_sizes(engine), files=written, fragments=fragments)


class HostBuffer:
    """Host memory for one snapshot, reused by all saves of a run. It is page-locked for fast copies from a GPU.

    Args:
        device: the state's device.
        sharers: number of processes on this node that take a snapshot at the same time.
    """

    def __init__(self, device: torch.device, sharers: int) -> None:
        self._device = device
        self._sharers = sharers
        self._memory = torch.empty(0)

    def copy(self, files: Files) -> Files | None:
        """Copy the present contents of the files, and return when the copy is complete.

        Returns:
            The files with copied contents, valid until the next call; None if the node lacks the memory.
        """
        needed = sum(piece.values.numel() for pieces in files.values() for piece in pieces)
        if self._memory.numel() < needed:
            if 4 * needed > SNAPSHOT_SHARE * available_memory() / self._sharers:
                return None
            self._allocate(needed)

        copied: Files = {}
        offset = 0
        for file, pieces in files.items():
            copied[file] = []
            for piece in pieces:
                target = self._memory[offset : offset + piece.values.numel()]
                copied[file].append(replace(piece, values=target))
                offset += piece.values.numel()

        sources = [piece.values for pieces in files.values() for piece in pieces]
        targets = [piece.values for pieces in copied.values() for piece in pieces]
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # DeepSpeed uses streams of its own
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(self._device)
        else:  # numpy's copy does not read the memory that it overwrites, and releases Python's lock
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                for _ in threads.map(lambda to, what: np.copyto(to.numpy(), what.numpy()), targets, sources):
                    pass
        return copied

    def close(self) -> None:
        """Free the memory."""
        if self._memory.numel() and self._device.type == "cuda":
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory = torch.empty(0)

    def _allocate(self, numel: int) -> None:
        self.close()
        self._memory = torch.from_numpy(np.empty(numel, np.float32))  # unlike torch, numpy asks for huge pages
        if self._device.type == "cuda":
            # torch's allocator of page-locked memory would round up to a power of two
            error = torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), 4 * numel, 0)
            if int(error) != 0:
                log.warning("cannot page-lock a snapshot of %d bytes (%s): copies will be slower", 4 * numel, error)
