"""What memory a worker has: the whole of its device's or its share of the machine's, and what of it is still free."""

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_memory(device: torch.device, workers_here: int) -> int:
    """Bytes that one worker may count on: its GPU's memory, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [psutil.virtual_memory().total]
    limits += [int(f.read_text()) for f in CGROUP_LIMITS if f.exists() and f.read_text().strip().isdigit()]
    return min(limits) // workers_here


def free_memory(device: torch.device, workers_here: int) -> int:
    """Of `device_memory`, the bytes that nobody else has taken; on a GPU, which belongs to the worker, all of it."""
    whole = device_memory(device, workers_here)
    if device.type == "cuda":
        return whole
    mine = psutil.Process().memory_info().rss
    return min(whole, psutil.virtual_memory().available // workers_here + mine)


def available_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    available = int(psutil.virtual_memory().available)
    limit = CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip().isdigit():
        reclaimable = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((CGROUP / "memory.current").read_text()) - int(reclaimable)
        available = min(available, int(limit.read_text()) - used)
    return max(0, available)
