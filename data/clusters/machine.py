"""What a private Ray needs of this machine, checked in milliseconds before it starts. Imports no Ray.

Without these, Ray starts some of its processes and then fails with a stack trace, or waits for minutes.
"""

import os
import platform
import resource
import tempfile
from pathlib import Path

from data.errors import NoCluster

LONGEST_SOCKET = 107  # bytes in the path of a socket (unix(7))
SOCKET = "session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # the longest in Ray's folder
LEAST_FILES = 256  # open files
LEAST_FREE = 32 * 2**20  # bytes
SHARED_MEMORY = "/dev/shm"


def ray_folder() -> Path:
    """Ray's folder on this machine, for sockets and logs: `ray` in RAY_TMPDIR, TMPDIR or /tmp."""
    name = _named_by()
    return Path(os.environ[name] if name else "/tmp", "ray")


def check_machine() -> None:
    """Check that Ray can start here.

    Raises:
        NoCluster: too few open files are allowed, or Ray's folder or /dev/shm cannot be used.
    """
    _check_open_files()
    folder = ray_folder()
    _check_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise NoCluster(f"Ray cannot write into {folder}, {_cause()}: {reason}; {_remedy()}") from error
    _check_shared_memory()


def _check_open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the soft limit itself
    if most != resource.RLIM_INFINITY and most < LEAST_FILES:
        raise NoCluster(
            f"Ray needs {LEAST_FILES} open files, and this process may open {most}: raise the limit (ulimit -Hn 8192, "
            "as root; in Docker --ulimit nofile=8192)"
        )


def _check_path(folder: Path) -> None:
    if not folder.is_absolute():
        raise NoCluster(f"Ray's folder is {folder}, {_cause()}, which is not an absolute path; {_remedy()}")
    length, most = len(os.fsencode(folder)), LONGEST_SOCKET - len(SOCKET.format(pid=os.getpid())) - 1
    if length > most:
        raise NoCluster(
            f"Ray's folder {folder}, {_cause()}, has a path of {length} bytes, and sockets in it allow {most}; "
            f"{_remedy()}"
        )


def _check_folder(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="check-") as file:
        file.write(bytes(2**16))
        file.flush()
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if free < LEAST_FREE:
        raise NoCluster(
            f"Ray's folder {folder}, {_cause()}, is on a disk with {free // 2**20} MiB free, and Ray needs "
            f"{LEAST_FREE // 2**20} MiB; make room, or {_remedy()}"
        )


def _check_shared_memory() -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="check-") as file:
            file.write(bytes(2**16))
            file.flush()
    except OSError as error:
        raise NoCluster(
            f"Ray cannot write into {SHARED_MEMORY}: {error.strerror or error}; make room there (in Docker "
            "--shm-size=1g)"
        ) from error


def _named_by() -> str | None:
    """The variable that names the folder of Ray's folder; None if there is none. Ray reads TMPDIR on Linux alone."""
    names = ("RAY_TMPDIR", "TMPDIR") if platform.system() == "Linux" else ("RAY_TMPDIR",)
    return next((name for name in names if name in os.environ), None)


def _cause() -> str:
    name = _named_by()
    return f"from {name}" if name else "its default"


def _remedy() -> str:
    return "set RAY_TMPDIR to a short path of a folder of your own, on a disk with room"
