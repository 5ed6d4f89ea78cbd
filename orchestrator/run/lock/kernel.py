"""The lock of a run's folder on a disk: the kernel's, so that it ends with the processes that hold it.

The command and rank 0 both write into the folder, and rank 0 outlives a killed command by seconds. So both hold a
shared lock on the file. A new owner needs the exclusive lock for a moment: it gets it only if no process of another
owner is left. It writes its name, and then shares the lock.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.run.lock.owner import Owner, Taken, parse

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks
POLL_SECONDS = 0.5


class NoKernelLock(OSError):
    """The file system has no locks."""


def lock(path: Path, owner: Owner, patience: Callable[[Owner | None], float], *, by_force: bool) -> int:
    """Lock the file for `owner`.

    Args:
        patience: seconds to wait for the present owner.
        by_force: replace the file instead. The present owner finds another name in it.

    Returns:
        The file's descriptor, which holds the lock.

    Raises:
        Taken: the present owner stays.
        NoKernelLock: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if by_force:
        path.unlink(missing_ok=True)
    began = time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        held = False
        try:
            held = _take(descriptor, path, owner)
        finally:
            if not held:
                os.close(descriptor)
        if held:
            return descriptor
        present = _named(path)
        if time.monotonic() - began > patience(present):
            raise Taken(present)
        time.sleep(POLL_SECONDS)


def share(path: Path) -> int | None:
    """Share the lock that the command holds. Returns the descriptor that holds it; None if that is impossible."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None  # this node does not see the file
    try:
        if _try(descriptor, fcntl.LOCK_SH):
            return descriptor
    except NoKernelLock:
        pass
    os.close(descriptor)
    return None


def _take(descriptor: int, path: Path, owner: Owner) -> bool:
    """Lock the open file alone, write the owner into it, and then share the lock. Returns whether that succeeded."""
    if not (_try(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, path)):
        return False
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, owner.dumps(), 0)
    os.fsync(descriptor)
    return _try(descriptor, fcntl.LOCK_SH)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise NoKernelLock(*error.args) from error
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: an owner that ended removes its own."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _named(path: Path) -> Owner | None:
    try:
        return parse(path.read_bytes())
    except OSError:
        return None
