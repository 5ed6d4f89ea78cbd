"""What a rank has to save, copied to host memory while training goes on."""

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

FILE_BYTES = 512 * 2**20  # a file ends when it has so many
SNAPSHOT_SHARE = 0.7  # of the memory that is free on the node: the data plane goes on reading ahead

log = logging.getLogger(__name__)


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

    def copy(self, files: Files) -> Files | None:
        """A copy of the files' contents as they are now; None if the node has no memory for it.

        It is whole when this returns. It stays until the next call.
        """
        needed = sum(piece.values.numel() for pieces in files.values() for piece in pieces)
        if self._memory.numel() < needed:
            if 4 * needed > SNAPSHOT_SHARE * available_memory() / self._sharers:
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
