"""How much memory a worker has, and how much of it is free.

A container's memory limit belongs to a control group (cgroup). Groups are nested, and a process is bound by the limits
of its own group and of all groups above it. What is free is the smallest `limit - use` among them:

                limit                    use                      of it, page cache that the kernel drops first
    cgroup v2   memory.max               memory.current           inactive_file in memory.stat
    cgroup v1   memory.limit_in_bytes    memory.usage_in_bytes    total_inactive_file in memory.stat
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

PROCESS = Path("/proc/self")
"""Where Linux describes this process: `cgroup` names its groups, `mountinfo` says where their files are."""


class _Files(NamedTuple):
    """Names of a group's files, and of a line in its memory.stat."""

    limit: str
    use: str
    reclaimable: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class _Limit:
    """The memory limit of a group and how much of it is used, in bytes."""

    limit: int
    used: int


def device_memory(device: torch.device, workers_here: int) -> int:
    """Bytes of one worker's device: of its GPU, or its share of the machine's or the container's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(group.limit for group in _limits())]) // workers_here


def free_memory(device: torch.device, workers_here: int) -> int:
    """Bytes that one worker can take: all of its GPU; on a CPU, its share of what is free and what it holds already."""
    whole = device_memory(device, workers_here)
    if device.type == "cuda":
        return whole
    process = psutil.Process().memory_info()
    held = process.rss - getattr(process, "shared", 0)  # libraries' pages are page cache, which is free or no worker's
    return min(whole, available_memory() // workers_here + held)


def available_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    free = [int(psutil.virtual_memory().available), *(group.limit - group.used for group in _limits())]
    return max(0, min(free))


def _limits() -> Iterator[_Limit]:
    """The limits that bind this process; none on a system without control groups."""
    if not (PROCESS / "cgroup").exists():
        return
    for folder, mounted_at, files in _folders():
        for group in (folder, *folder.parents):
            if (limit := _limit(group, files)) is not None:
                yield limit
            if group == mounted_at:
                break


def _folders() -> Iterator[tuple[Path, Path, _Files]]:
    """This process's groups that may limit memory: folder, mount point of the hierarchy above it, file names."""
    groups = dict(_group(line) for line in (PROCESS / "cgroup").read_text().splitlines())
    for line in (PROCESS / "mountinfo").read_text().splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = file_system.split(" ", 2)
        controller = {"cgroup": "memory", "cgroup2": ""}.get(kind)
        if controller not in groups or (controller and controller not in options.split(",")):
            continue
        _, _, _, root, mounted_at, *_ = mount.split(" ")
        inside = Path("/").joinpath(groups[controller])
        # A container may see the name that its group has on the host, with only the container's own folder mounted.
        below = inside.relative_to(root) if inside.is_relative_to(root) and ".." not in inside.parts else Path()
        yield Path(mounted_at) / below, Path(mounted_at), _V1 if controller else _V2


def _group(line: str) -> tuple[str, str]:
    """(controller, path) of a line of /proc/self/cgroup; the controller is "memory" or, for all of cgroup v2, empty."""
    _, controllers, path = line.split(":", 2)
    return "memory" if "memory" in controllers.split(",") else controllers, path


def _limit(group: Path, files: _Files) -> _Limit | None:
    """The limit of a group; None if it has none."""
    limit = group / files.limit
    if not limit.exists() or not (text := limit.read_text().strip()).isdigit():
        return None
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    use = int((group / files.use).read_text())
    return _Limit(int(text), use - int(statistics[files.reclaimable]))
