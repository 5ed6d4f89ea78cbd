"""One command at a time packs into a folder on a disk. In a bucket every file is put whole, so none has to wait."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data import storage

log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Wait until no other command packs into `folder`; then the others wait until the block ends.

    The kernel's lock on the folder itself leaves no file, and ends with the process. A file system without locks gives
    no protection.
    """
    descriptor = _locked(storage.resolve(folder)[1]) if storage.is_local(folder) else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: str) -> int | None:
    """A descriptor of the folder that holds its lock; None if that is impossible."""
    try:
        os.makedirs(path, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None  # packing itself says what is wrong
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another command packs this set; waiting for its end", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
