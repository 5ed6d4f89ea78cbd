"""What a private Ray needs: each lack in one line, within milliseconds, under real conditions."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.clusters import machine
from data.clusters.machine import LONGEST_SOCKET, SOCKET, check_machine, ray_folder
from data.errors import NoCluster
from tests.paths import ROOT

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems and takes another user's rights")


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", folder], capture_output=True).returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def refused() -> str:
    with pytest.raises(NoCluster) as error:
        check_machine()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_this_machine_is_fit() -> None:
    check_machine()
    assert ray_folder() == Path("/tmp/ray")


def test_rays_own_folder_and_its_longest_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same folder as Ray chooses, and a path is refused at the byte at which Ray refuses its socket."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray._private.utils import validate_socket_filepath

    assert str(ray_folder()) == get_default_ray_temp_dir()
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert str(ray_folder()) == get_default_ray_temp_dir()
    for length, fits in ((LONGEST_SOCKET, True), (LONGEST_SOCKET + 1, False)):
        end = f"/{SOCKET.format(pid=os.getpid())}"
        folder = Path("/" + "é" * ((length - len(end) - 1) // 2) + "e" * ((length - len(end) - 1) % 2))
        if fits:
            validate_socket_filepath(f"{folder}{end}")
            machine._check_path(folder)
        else:
            with pytest.raises(OSError, match="107 bytes"):
                validate_socket_filepath(f"{folder}{end}")
            with pytest.raises(NoCluster):
                machine._check_path(folder)


def test_a_temporary_folder_that_is_too_deep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 107)
    monkeypatch.setenv("TMPDIR", str(deep))
    assert f"{deep}/ray, from TMPDIR, has a path of" in refused()
    assert not deep.exists()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_machine()
    monkeypatch.setenv("RAY_TMPDIR", "relative")
    assert "from RAY_TMPDIR, which is not an absolute path; set RAY_TMPDIR to" in refused()


def test_a_file_in_the_place_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/null")
    assert refused().startswith("Ray cannot write into /dev/null/ray, from TMPDIR: Not a directory; set RAY_TMPDIR to")


@needs_root
def test_a_full_and_a_read_only_temporary_folder(monkeypatch: pytest.MonkeyPatch, mounted: Path) -> None:
    monkeypatch.setattr(machine, "LONGEST_SOCKET", 4096)  # pytest's folders are deep
    monkeypatch.setenv("TMPDIR", str(mounted))
    assert " MiB free, and Ray needs 32 MiB; make room, or set RAY_TMPDIR" in refused()
    (mounted / "full").write_bytes(bytes(2**20 - 2**14))
    assert f"cannot write into {mounted}/ray, from TMPDIR: No space left on device; set RAY_TMPDIR" in refused()
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    assert "Read-only file system; set RAY_TMPDIR" in refused()


@needs_root
def test_a_folder_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    (tmp_path / "ray").mkdir(mode=0o755)
    monkeypatch.setattr(machine, "LONGEST_SOCKET", 4096)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    os.seteuid(NOBODY)
    try:
        assert f"cannot write into {tmp_path}/ray, from TMPDIR: Permission denied; set RAY_TMPDIR" in refused()
    finally:
        os.seteuid(0)


@needs_root
def test_shared_memory_that_is_full_or_missing(monkeypatch: pytest.MonkeyPatch, mounted: Path) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", str(mounted))
    check_machine()
    (mounted / "full").write_bytes(bytes(2**20 - 2**14))
    assert (
        refused()
        == f"Ray cannot write into {mounted}: No space left on device; make room there (in Docker --shm-size=1g)"
    )
    monkeypatch.setattr(machine, "SHARED_MEMORY", str(mounted / "missing"))
    assert "No such file or directory" in refused()


def test_few_open_files() -> None:
    """The hard limit counts: Ray raises the soft one itself."""
    code = "from data.clusters.machine import check_machine; check_machine()"

    def limited(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
            capture_output=True,
            text=True,
        )

    assert limited(64, 4096).returncode == 0
    last = limited(64, 64).stderr.splitlines()[-1]
    assert "Ray needs 256 open files, and this process may open 64: raise the limit (ulimit -Hn 8192" in last
