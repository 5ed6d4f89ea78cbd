"""`RUN/lock`: the command that trains a run holds it, and rank 0 looks at it before each manifest.

    on a disk       the kernel's lock (`kernel.py`)
    in a bucket     a lease of 60 s, renewed every 15 s (`lease.py`); also on a disk whose file system has no locks

A second start waits for a lease at most, and then names the owner. `--take-over` puts another name into the file; the
command and rank 0 of the present owner see it, and end. An outage of the store ends no run.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from data import storage
from orchestrator.run.lock import kernel
from orchestrator.run.lock.lease import LEASE_SECONDS, RENEW_SECONDS, lease, renew
from orchestrator.run.lock.owner import NAME, Owner, Taken, read_owner

ALIVE_SECONDS = 10.0
"""How long a start waits for an owner whose process lives: it may be about to end."""

log = logging.getLogger(__name__)


class RunLock:
    """Owns a run until the end of the `with` block. Entering may take LEASE_SECONDS.

    Args:
        folder: URL of the run's folder, which need not exist.
        cluster: the Ray cluster that trains, for the owner's name.
        say: receives a line if there is an owner to wait for.
        on_loss: called once, from a thread, if another owner took the run over.
        take_over: take the run from its present owner.

    Attributes:
        owner: this start.
        lost_to: the owner that took the run over, if there is one.

    Raises:
        Taken: on entering; another start owns the run.
    """

    def __init__(
        self,
        folder: str,
        cluster: str,
        *,
        say: Callable[[str], None],
        on_loss: Callable[[], None],
        take_over: bool = False,
    ) -> None:
        self.owner = Owner.here(cluster)
        self.lost_to: Owner | None = None
        self._url = storage.join(folder, NAME)
        self._say = say
        self._on_loss = on_loss
        self._take_over = take_over
        self._path = Path(storage.resolve(self._url)[1]) if storage.is_local(folder) else None
        self._descriptor: int | None = None
        self._waited_for: set[str] = set()
        self._released = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        if self._take_over and (present := read_owner(self._url)) is not None:
            self._say(f"taking the run over from {present}")
        self._acquire()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._watcher.join(RENEW_SECONDS)
        with contextlib.suppress(Exception):  # the lock ends without it, too
            present = read_owner(self._url)
            if present is not None and present.token == self.owner.token:
                storage.remove(self._url)
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._path is not None:
            with contextlib.suppress(OSError):  # it is a run's folder by now
                self._path.parent.rmdir()

    def _acquire(self) -> None:
        if self._path is not None:
            with contextlib.suppress(kernel.NoKernelLock):
                self._descriptor = kernel.lock(self._path, self.owner, self._patience, by_force=self._take_over)
                return
        if not self._take_over:
            self._patience(read_owner(self._url))
        lease(self._url, self.owner, by_force=self._take_over)

    def _patience(self, present: Owner | None) -> float:
        """Seconds to wait for the present owner, which the user hears of once."""
        seconds = ALIVE_SECONDS if present is not None and present.is_alive else LEASE_SECONDS
        if present is not None and not present.is_dead and present.token not in self._waited_for:
            self._waited_for.add(present.token)
            self._say(f"{present} trains this run; waiting up to {seconds:.0f} s for its end")
        return seconds

    def _watch(self) -> None:
        """Renew the lease, and see whether the run was taken over."""
        owner = self.owner
        while not self._released.wait(RENEW_SECONDS):
            try:
                if self._descriptor is None:
                    owner, other = renew(self._url, owner)
                else:
                    other = foreign(self._url, owner.token)
            except Exception as error:  # an outage of the store; each has its own errors
                log.warning("run lock: %s", storage.describe(error))
                continue
            if other is not None:
                self.lost_to = other
                self._on_loss()
                return


class Guard:
    """Rank 0's hold on its run: it shares the command's lock, since it may outlive the command by seconds.

    Args:
        folder: URL of the run's folder.
        token: of the owner that started this worker.
    """

    def __init__(self, folder: str, token: str) -> None:
        self._url = storage.join(folder, NAME)
        self._token = token
        self._descriptor = kernel.share(Path(storage.resolve(self._url)[1])) if storage.is_local(folder) else None

    def check(self) -> None:
        """Call it before writing what completes a checkpoint.

        Raises:
            Taken: another owner took the run over.
        """
        if (other := foreign(self._url, self._token)) is not None:
            raise Taken(other)


def foreign(url: str, token: str) -> Owner | None:
    """The owner in the lock file at `url`, if it is not the one with `token`. Raises the store's errors."""
    owner = read_owner(url)
    return owner if owner is not None and owner.token != token else None
