"""Free memory, with a container's limits as the kernel describes them, and inside a real control group."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from orchestrator.engine.memory import available
from tests.paths import ROOT

CPU = torch.device("cpu")
MIB = 2**20
UNLIMITED = {1: 9223372036854771712, 2: "max"}  # as each version writes it


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Machine":
    """64 GiB, of which 60 are free, and no control groups yet."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**36, available=60 * 2**30))
    monkeypatch.setattr(available, "PROCESS", tmp_path / "proc")
    return Machine(tmp_path)


class Machine:
    """Control groups in a folder, laid out as the kernel lays them out."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mounts = folder / "sys/fs/cgroup"

    def enter(self, version: int, path: str, *, root: str = "/") -> None:
        """Put this process into the group at `path`; the hierarchy is mounted from `root` on."""
        self.proc.mkdir(parents=True)
        cpu = f"35 24 0:29 / {self.mounts}/cpu rw,nosuid - cgroup cgroup rw,cpu"
        if version == 1:
            memory = f"36 24 0:30 {root} {self.mounts}/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"
            groups = f"11:cpu,cpuacct:/elsewhere\n4:memory:{path}\n1:name=systemd:/\n0::/\n"
        else:
            memory = f"36 24 0:30 {root} {self.mounts} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
            groups = f"0::{path}\n"
        (self.proc / "cgroup").write_text(groups)
        (self.proc / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{cpu}\n{memory}\n")

    def group(self, version: int, folder: str, *, limit: int | str, used: int, cache: int) -> None:
        """A group's files; `cache` of `used` is inactive page cache. All in MiB."""
        group = (self.mounts / "memory" if version == 1 else self.mounts) / folder
        group.mkdir(parents=True, exist_ok=True)
        text = limit if isinstance(limit, str) or limit > 2**40 else limit * MIB
        if version == 1:
            (group / "memory.limit_in_bytes").write_text(f"{text}\n")
            (group / "memory.usage_in_bytes").write_text(f"{used * MIB}\n")
            statistics = f"cache {cache * MIB}\ninactive_file 4096\ntotal_inactive_file {cache * MIB}\n"
        else:
            (group / "memory.max").write_text(f"{text}\n")
            (group / "memory.current").write_text(f"{used * MIB}\n")
            statistics = f"anon {(used - cache) * MIB}\ninactive_file {cache * MIB}\n"
        (group / "memory.stat").write_text(statistics)


def held() -> int:
    """Bytes of this process alone."""
    process = psutil.Process().memory_info()
    return process.rss - process.shared


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_present_use_is_not_free(machine: Machine, version: int) -> None:
    """8 GiB, of which the container uses 6; the kernel can take back 1 of these."""
    machine.enter(version, "/")
    machine.group(version, ".", limit=8192, used=6144, cache=1024)
    assert available.available_memory() == 3072 * MIB
    assert available.device_memory(CPU, 2) == 4096 * MIB
    expected = min(4096 * MIB, 1536 * MIB + held())
    assert available.free_memory(CPU, 2) == pytest.approx(expected, abs=50 * MIB)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_may_see_its_groups_name_on_the_host(machine: Machine, version: int) -> None:
    machine.enter(version, "/docker/5f3a", root="/docker/5f3a")
    machine.group(version, ".", limit=2048, used=512, cache=0)
    assert available.available_memory() == 1536 * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("inner", "outer", "expected"), [((1024, 100), (8192, 8000), 192), ((1024, 1000), (8192, 8000), 24)]
)
def test_the_limit_that_leaves_least_counts(
    machine: Machine, version: int, inner: tuple[int, int], outer: tuple[int, int], expected: int
) -> None:
    """A pod of 8 GiB in which other containers use much, and a container of 1 GiB in it."""
    machine.enter(version, "/pods/pod/container")
    machine.group(version, "pods/pod/container", limit=inner[0], used=inner[1], cache=0)
    machine.group(version, "pods/pod", limit=outer[0], used=outer[1], cache=0)
    machine.group(version, "pods", limit=UNLIMITED[version], used=30000, cache=0)
    assert available.available_memory() == expected * MIB
    assert available.device_memory(CPU, 1) == 1024 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_machine_counts_where_no_group_has_a_limit(machine: Machine, version: int) -> None:
    machine.enter(version, "/a")
    machine.group(version, "a", limit=UNLIMITED[version], used=30000, cache=0)
    assert available.available_memory() == 60 * 2**30
    assert available.device_memory(CPU, 2) == 2**35


@pytest.mark.parametrize("path", ["/../other", "/gone"])
def test_a_group_that_cannot_be_seen(machine: Machine, path: str) -> None:
    machine.enter(2, path, root="/")
    machine.group(2, ".", limit=1024, used=1000, cache=0)
    assert available.available_memory() == 24 * MIB


def test_a_system_without_control_groups(machine: Machine) -> None:
    assert available.available_memory() == 60 * 2**30


def test_more_use_than_the_limit_leaves_nothing(machine: Machine) -> None:
    """A limit can be lowered below the use."""
    machine.enter(2, "/")
    machine.group(2, ".", limit=1024, used=2000, cache=0)
    assert available.available_memory() == 0


def test_memory_that_other_processes_hold_is_not_free(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = available.device_memory(CPU, 2)
    assert available.free_memory(CPU, 2) == pytest.approx(min(whole, 30 * 2**30 + held()), abs=50 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2 * whole, available=2**30))
    assert available.free_memory(CPU, 2) == pytest.approx(min(whole, 2**29 + held()), abs=50 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2 * whole, available=2 * whole))
    assert available.free_memory(CPU, 2) == whole


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of 2 GiB, below the one that the tests run in."""
    for folder, _, files in available._folders() if available.PROCESS.exists() else ():
        group = folder / f"vit-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / files.limit).write_text(str(2 * 2**30))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("this user may not make a control group with a memory limit")


def test_inside_a_real_control_group(real_group: Path) -> None:
    """A neighbour in the group takes 1 GiB; it is missing from what a worker counts on."""
    script = textwrap.dedent("""
        import os, subprocess, sys
        open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
        import torch
        from orchestrator.engine.memory.available import available_memory, device_memory, free_memory

        def show():
            cpu = torch.device("cpu")
            print(device_memory(cpu, 1), available_memory(), free_memory(cpu, 1))

        show()
        take = "x = bytearray(b'x') * 2**30; print('taken', flush=True); input()"
        neighbour = subprocess.Popen([sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        neighbour.stdout.readline()
        show()
        neighbour.communicate(b"go")
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(real_group)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = ([int(number) for number in line.split()] for line in run.stdout.splitlines())
    limit, taken = 2 * 2**30, 2**30
    assert before[0] == after[0] == limit
    assert limit / 2 < before[1] < limit
    assert before[1] - after[1] == pytest.approx(taken, rel=0.1)
    assert 0.9 * limit < before[2] <= limit, "the worker's own memory counts as its own"
    assert before[2] - after[2] == pytest.approx(taken, rel=0.1)
