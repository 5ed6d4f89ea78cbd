"""How many images fit on a device at once, from the model's own arithmetic."""

import math
from pathlib import Path

import psutil
import torch

from model import ViTConfig
from model.flops import activation_bytes
from orchestrator.job import Parallel

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
USABLE = 0.85  # of a device's memory: the rest goes to workspaces, communication buffers and fragmentation


def state_bytes(parameters: int, parallel: Parallel, world_size: int) -> int:
    """Weights, gradients and AdamW state of one rank, in bytes.

    float32 master weights and two moments are 12 bytes a parameter, divided by the ranks from ZeRO 1 on; gradients
    from ZeRO 2 on; the weights that the model computes with at ZeRO 3 (Rajbhandari et al., "ZeRO", section 3). bf16
    runs hold working weights of 2 bytes, gradients of 2 and, from stage 1 on, a float32 accumulator of 4; float32 runs
    hold 4 and 4, and at stage 0 step the working weights themselves.
    """
    stage, bf16 = parallel.zero_stage, parallel.precision == "bf16"
    working = 2 if bf16 else 4
    gradients = (6 if stage else 2) if bf16 else 4
    optimizer = 12 if bf16 or stage else 8
    shards = [world_size if stage >= needed else 1 for needed in (3, 2, 1)]
    each = zip((working, gradients, optimizer), shards, strict=True)
    return sum(math.ceil(size * parameters / shard) for size, shard in each)


def device_memory(device: torch.device, workers_here: int) -> int:
    """Bytes that one worker may count on: its GPU's memory, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [psutil.virtual_memory().total]
    limits += [int(f.read_text()) for f in CGROUP_LIMITS if f.exists() and f.read_text().strip().isdigit()]
    return min(limits) // workers_here


def auto_micro_batch(
    config: ViTConfig, parameters: int, parallel: Parallel, *, local_batch: int, world_size: int, memory: int
) -> int:
    """The largest equal part of `local_batch` whose activations fit beside the state in `memory` bytes.

    Raises:
        ValueError: not even one image fits.
    """
    size = 2 if parallel.precision == "bf16" else 4
    free = int(USABLE * memory) - state_bytes(parameters, parallel, world_size)
    each = activation_bytes(config, parallel.activation_checkpointing, size)
    if free < each:
        raise ValueError(
            f"{config.name} needs {(USABLE * memory - free + each) / 2**30:.1f} GiB a worker for one image and has "
            f"{memory / 2**30:.1f}: use more workers, a higher parallel.zero_stage or activation_checkpointing: full"
        )
    return math.ceil(local_batch / math.ceil(local_batch / (free // each)))
