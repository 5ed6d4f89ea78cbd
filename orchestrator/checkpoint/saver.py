"""Checkpoints while training goes on: a snapshot in host memory, written and uploaded beside it, one at a time.

Training stands still only while the state is copied. Where the node has no memory for a copy, it stands still until the
state is on local disk. Files on their way to a bucket lie on local disk one by one, each about half a gigabyte; without
memory for a copy, all of this rank's share does. There is never more than one checkpoint on its way.

A save that cannot be is no reason to stop: the checkpoint before stays. While one upload goes on, the next save is left
out, and training goes on; MAX_FAILED failures in a row end the run. All ranks decide alike.
"""

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data import storage
from orchestrator.checkpoint.files import DISK_FULL_ERRNOS, Files, staging_folder, write_file
from orchestrator.checkpoint.manifest import CheckpointError, File, new_name, prune, remove_unfinished
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.checkpoint.snapshot import HostBuffer, owned_files, part_of
from orchestrator.checkpoint.upload import Abandoned, publish, remove_parts
from orchestrator.engine.step import Engine

MAX_FAILED = 3  # failed saves in a row that end the run
ALLOWANCE = 5.0  # seconds that a save waits for the upload before it to end, unless its store is away

# (metrics, local directory, the checkpoint's name, upload): has `upload` carried out in the background
Report = Callable[[dict[str, Any], Path, str, Callable[[], None]], None]

log = logging.getLogger(__name__)


class Saver:
    """Saves one run's checkpoints from every rank. Collective: construct and call it on all ranks alike.

    What a dead attempt left of checkpoints, in the run's folder and on local disk, is deleted at the start.

    Args:
        engine: what is saved.
        run_url: the run's folder, which is also Ray Train's.
        keep: newest checkpoints that stay.
        say: is given a line when a store is away or back, or a save is left out or fails; once, not on every rank.
        report: has an upload carried out.
        before: carried out in the background before a checkpoint is complete, repeatedly while its store is away.

    Attributes:
        skipped: saves that were left out because the upload before them was still going on.
        failed: saves that failed.
    """

    def __init__(
        self,
        engine: Engine,
        run_url: str,
        keep: int,
        say: Callable[[str], None],
        *,
        report: Report,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._engine, self._run_url, self._keep = engine, run_url, keep
        self._before, self._report = before, report
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._say = say if self._rank == 0 else log.warning
        self._buffer = HostBuffer(engine.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._idle = threading.Event()
        self._idle.set()
        self._stop = threading.Event()
        self._retry = StoreRetry(run_url, self._say, self._stop)
        self._uploaded = ""  # name of the last checkpoint that was begun, until it is settled
        self._cause: str | None = None  # why it failed, on this rank
        self._failed_in_a_row = 0
        self._said_skip, self._said_failure = False, False
        self.skipped, self.failed = 0, 0

        self._staging = staging_folder(run_url)
        dist.barrier()  # nobody is restoring any more
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            shutil.rmtree(self._staging, ignore_errors=True)
        if self._rank == 0:
            self._tidy(remove_unfinished, run_url)

    def save(self, step: int, totals: dict[str, Any], metrics: dict[str, float], *, wait: bool) -> float:
        """Save the state after `step` steps. Every rank must call it at the same step.

        It returns as soon as training may go on, or, with `wait`, when the checkpoint is complete. Without `wait` it is
        left out while the upload before it goes on.

        Args:
            totals: the accounting totals, restored with the weights.
            metrics: what Ray Train shows beside the checkpoint.

        Returns:
            Seconds that training stood still.

        Raises:
            CheckpointError: on all ranks: MAX_FAILED saves in a row failed; or, with `wait`, this one.
        """
        began = time.monotonic()
        busy, suffix = self._settle(float("inf") if wait else ALLOWANCE)
        if busy:
            self.skipped += 1
            if not self._said_skip:
                self._said_skip = True
                self._say(f"no checkpoint at step {step}: {self._uploaded} is still being uploaded; training goes on")
            return time.monotonic() - began

        name = new_name(step, suffix)
        directory = self._staging / f"rank-{self._rank:05d}"
        files = owned_files(self._engine, self._rank, self._world)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held = self._buffer.copy(files)
            staged: Iterable[tuple[Path, File]]
            staged = list(_written(directory, files)) if held is None else _written(directory, held)
        except (OSError, CheckpointError) as error:
            staged = _failing(error)
        self._uploaded, self._cause, self._said_skip, self._said_failure = name, None, False, False
        self._stop.clear()
        self._idle.clear()
        upload = partial(self._upload, directory, name, staged, files, step, totals, metrics)
        self._report({"step": step, **metrics}, directory, name, upload)
        if wait:
            self._settle(float("inf"))
            if self._failed_in_a_row:
                raise CheckpointError(f"checkpoint {name} failed: {self._cause}")
        return time.monotonic() - began

    @property
    def idle(self) -> bool:
        """Whether this rank has no upload under way."""
        return self._idle.is_set()

    def finish(self) -> None:
        """Wait until this rank has no upload under way."""
        self._idle.wait()

    def _upload(
        self,
        directory: Path,
        name: str,
        staged: Iterable[tuple[Path, File]],
        files: Files,
        step: int,
        totals: dict[str, Any],
        metrics: dict[str, float],
    ) -> None:
        """In the background, once. Failures are kept for `_settle`."""
        destination = f"{self._run_url}/{name}"
        try:
            if self._before is not None:
                self._retry(self._before)
            publish(
                staged,
                partial(part_of, self._engine, files),
                destination,
                rank=self._rank,
                world_size=self._world,
                step=step,
                totals=totals,
                metrics=metrics,
                retry=self._retry,
                stop=self._stop,
            )
        except Abandoned:
            self._cause = ""
        except Exception as error:  # of any library below; it is said and counted
            log.warning("checkpoint %s failed", name, exc_info=True)
            self._cause = _describe(error, self._run_url)
            if self._rank == 0:
                self._say_failure(name, self._cause)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if self._rank == 0:
            if self._cause is None:
                self._tidy(remove_parts, destination)
                self._tidy(prune, self._run_url, self._keep)
            else:
                self._tidy(storage.remove_folder, destination)
        self._idle.set()

    def _settle(self, allowance: float) -> tuple[bool, int]:
        """Wait for the upload under way, if there is one, and take note of how it ended. Collective.

        Args:
            allowance: seconds to wait at most. Unless they are infinite, a store that is away is not waited for.

        Returns:
            Whether it still goes on, and 32 random bits, the same on all ranks.

        Raises:
            CheckpointError: it was the last of MAX_FAILED failures in a row.
        """
        began, pause = time.monotonic(), 0.01
        while True:
            # rank 0's clock and dice count
            first = self._rank == 0
            flags = [
                not self._idle.is_set(),
                self._retry.away,
                self._cause is not None,
                first and time.monotonic() - began > allowance,
                secrets.randbits(32) if first else 0,
            ]
            numbers = torch.tensor([int(flag) for flag in flags], dtype=torch.int64, device=self._engine.device)
            dist.all_reduce(numbers)
            busy, away, failed, late, suffix = numbers.tolist()
            if failed:
                self._stop.set()  # what the others still upload is of no use
            if not busy or late or (away and allowance != float("inf")):
                break
            self._idle.wait(pause)
            pause = min(0.5, 1.5 * pause)
        if not busy and self._uploaded:
            self._count(failed)
        return bool(busy), suffix

    def _count(self, failed: int) -> None:
        name, self._uploaded = self._uploaded, ""
        if not failed:
            self._failed_in_a_row = 0
            return
        causes: list[str | None] = [None] * self._world
        dist.all_gather_object(causes, self._cause)
        self._cause = next(f"rank {rank}: {cause}" for rank, cause in enumerate(causes) if cause)
        self.failed += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED:
            raise CheckpointError(f"{MAX_FAILED} checkpoints in a row failed, the last one: {self._cause}")
        if not self._said_failure:
            self._say_failure(name, self._cause)

    def _say_failure(self, name: str, cause: str) -> None:
        self._said_failure = True
        self._say(f"checkpoint {name} failed ({cause}); the one before stays")

    def _tidy(self, work: Callable[..., None], *arguments: Any) -> None:
        """Delete what nobody needs. That it fails is no reason to lose a checkpoint."""
        try:
            work(*arguments)
        except Exception as error:  # of any library below
            self._say(f"old checkpoints cannot be deleted ({_describe(error, self._run_url)})")


def _written(directory: Path, files: Files) -> Iterator[tuple[Path, File]]:
    """Write the files one after the other."""
    for name, pieces in files.items():
        yield directory / name, write_file(directory / name, pieces)


def _failing(error: Exception) -> Iterator[tuple[Path, File]]:
    """The files of a rank that could not write them: it fails with the upload, where the others learn of it."""
    raise error
    yield


def _describe(error: Exception, run_url: str) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return f"{run_url} is full"
    return storage.describe(error)
