"""Saving checkpoints during training: a snapshot in host memory, written and uploaded in the background.

Training waits only while the state is copied. If the node lacks the memory for a copy, training waits until the state
is on local disk. An upload to a bucket needs local disk for one file at a time, about half a gigabyte; without memory
for a copy, for all files of this rank. Only one checkpoint is in progress at a time.

A failed save does not stop training: the previous checkpoint remains. MAX_FAILED failures in a row end the run. A save
is skipped while the previous upload is in progress. All ranks make the same decisions.
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
from orchestrator.checkpoint.best import Best
from orchestrator.checkpoint.files import DISK_FULL_ERRNOS, Files, clear_staging, staging_folder, write_file
from orchestrator.checkpoint.manifest import CheckpointError, File, delete, new_name, prune, remove_unfinished
from orchestrator.checkpoint.notes import Owner
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.checkpoint.snapshot import HostBuffer, owned_files, part_of
from orchestrator.checkpoint.upload import Abandoned, TakenOver, publish, remove_parts
from orchestrator.engine.step import Engine

MAX_FAILED = 3  # failed saves in a row that end the run
SETTLE_SECONDS = 5.0  # how long a save waits for the previous upload to end, unless the store is unreachable

Report = Callable[[dict[str, Any], Path, str, Callable[[], None]], None]
"""(metrics, local directory, the checkpoint's name, upload) -> None: arranges that `upload` runs in the background."""

log = logging.getLogger(__name__)


class Saver:
    """Saves one run's checkpoints from every rank. Collective: all ranks construct it and call its methods together.

    The constructor deletes the unfinished checkpoints of earlier attempts, in the run's folder and on local disk.

    Args:
        engine: its state is saved.
        run_url: the run's folder, which is also Ray Train's.
        keep: number of newest checkpoints to keep.
        say: receives a line if a store is unreachable or back, or a save is skipped or fails; on rank 0 only.
        report: starts an upload in the background.
        owner: the run, which each checkpoint names.
        best: what makes a checkpoint the best, which is kept, too; None: the newest alone.
        before: called in the background before a checkpoint is completed, repeatedly while the store is unreachable.
        permit: called in the background on rank 0 before a manifest is written, repeatedly while the store is
            unreachable. It raises TakenOver if the run is not this command's any more.

    Attributes:
        skipped: number of saves that were skipped because the previous upload was still in progress.
        failed: number of saves that failed.
    """

    def __init__(
        self,
        engine: Engine,
        run_url: str,
        keep: int,
        say: Callable[[str], None],
        *,
        report: Report,
        owner: Owner | None = None,
        best: Best | None = None,
        before: Callable[[], None] | None = None,
        permit: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._run_url = run_url
        self._keep = keep
        self._owner = owner
        self._best = best
        self._report = report
        self._before = before
        self._permit = permit
        self._rank = dist.get_rank()
        self._world_size = dist.get_world_size()
        self._say = say if self._rank == 0 else log.warning

        self._buffer = HostBuffer(engine.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._staging = staging_folder(run_url)
        self._stop = threading.Event()
        self._retry = StoreRetry(run_url, self._say, self._stop)
        self._idle = threading.Event()
        self._idle.set()

        self._in_progress = ""  # the checkpoint whose upload has begun and whose outcome is not counted yet
        self._cause: str | None = None  # why its upload failed on this rank; empty if another rank's failed
        self._taken_over: TakenOver | None = None  # on rank 0
        self._failed_in_a_row = 0
        self._said_skip = False
        self._said_failure = False
        self.skipped = 0
        self.failed = 0

        dist.barrier()  # no rank is restoring any more
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            clear_staging(self._staging)
        if self._rank == 0:
            self._tidy(remove_unfinished, run_url)

    def save(self, step: int, totals: dict[str, Any], metrics: dict[str, float], *, wait: bool) -> float:
        """Save the state after `step` steps. Every rank must call it at the same step.

        With `wait` it returns when the checkpoint is complete. Otherwise it returns as soon as training can continue,
        and does nothing if the previous upload is still in progress.

        Args:
            totals: the accounting totals, restored with the weights.
            metrics: Ray Train shows them with the checkpoint.

        Returns:
            Seconds for which training waited.

        Raises:
            CheckpointError: on all ranks, if MAX_FAILED saves in a row failed; with `wait`, if this one failed.
            TakenOver: on all ranks; the run is not this command's any more.
        """
        began = time.monotonic()
        busy, suffix = self._settle(float("inf") if wait else SETTLE_SECONDS)
        if busy:
            self.skipped += 1
            if not self._said_skip:
                self._said_skip = True
                self._say(
                    f"no checkpoint at step {step}: {self._in_progress} is still being uploaded; training goes on"
                )
            return time.monotonic() - began

        name = new_name(step, suffix)
        directory = self._staging / f"rank-{self._rank:05d}"
        files = owned_files(self._engine, self._rank, self._world_size)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            copied = self._buffer.copy(files)
            staged: Iterable[tuple[Path, File]]
            staged = list(_written(directory, files)) if copied is None else _written(directory, copied)
        except (OSError, CheckpointError) as error:
            staged = _failing(error)

        self._in_progress = name
        self._cause = None
        self._said_skip = False
        self._said_failure = False
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
        """Whether this rank has no upload in progress."""
        return self._idle.is_set()

    def finish(self) -> None:
        """Wait until this rank has no upload in progress."""
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
        """Upload a checkpoint, in the background. `_settle` reads the cause of a failure."""
        destination = f"{self._run_url}/{name}"
        try:
            if self._before is not None:
                self._retry(self._before)
            publish(
                staged,
                partial(part_of, self._engine, files),
                destination,
                rank=self._rank,
                world_size=self._world_size,
                step=step,
                totals=totals,
                metrics=metrics,
                run=None if self._owner is None else self._owner.run,
                retry=self._retry,
                stop=self._stop,
                permit=self._permit,
            )
        except Abandoned:
            self._cause = ""
        except TakenOver as error:
            self._cause, self._taken_over = str(error), error
        except Exception as error:  # of any library; it is reported and counted
            log.warning("checkpoint %s failed", name, exc_info=True)
            self._cause = _describe(error, self._run_url)
            if self._rank == 0:
                self._say_failure(name, self._cause)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

        if self._rank == 0:
            if self._cause is None:
                self._tidy(remove_parts, destination)
                best = None if self._best is None else self._best.of
                self._tidy(prune, self._run_url, self._keep, name, self._owner, best)
            else:
                self._tidy(delete, destination)
        self._idle.set()

    def _settle(self, allowance: float) -> tuple[bool, int]:
        """Wait for the upload in progress, if any, and count its outcome. Collective.

        Args:
            allowance: seconds to wait at most. Unless infinite, it does not wait while the store is unreachable.

        Returns:
            Whether the upload is still in progress, and 32 random bits, the same on all ranks.

        Raises:
            CheckpointError: it was the last of MAX_FAILED failures in a row.
            TakenOver: the run is not this command's any more.
        """
        began, pause = time.monotonic(), 0.01
        while True:
            first = self._rank == 0  # only rank 0's clock and random bits are used
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
                self._stop.set()  # the other ranks' uploads are pointless
            if not busy or late or (away and allowance != float("inf")):
                break
            self._idle.wait(pause)
            pause = min(0.5, 1.5 * pause)

        if not busy and self._in_progress:
            self._count(failed)
        return bool(busy), suffix

    def _count(self, failed: int) -> None:
        """Count the outcome of an upload that has ended. Collective."""
        name, self._in_progress = self._in_progress, ""
        if not failed:
            self._failed_in_a_row = 0
            return

        causes: list[str | None] = [None] * self._world_size
        dist.all_gather_object(causes, self._cause)
        owners: list[TakenOver | None] = [self._taken_over]
        dist.broadcast_object_list(owners)
        if owners[0] is not None:
            raise owners[0]
        self._cause = next(f"rank {rank}: {cause}" for rank, cause in enumerate(causes) if cause)
        self.failed += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED:
            raise CheckpointError(f"{MAX_FAILED} checkpoints in a row failed, the last one: {self._cause}")
        if not self._said_failure:
            self._say_failure(name, self._cause)

    def _say_failure(self, name: str, cause: str) -> None:
        self._said_failure = True
        self._say(f"checkpoint {name} failed ({cause}); keeping the previous one")

    def _tidy(self, work: Callable[..., None], *arguments: Any) -> None:
        """Best-effort cleanup: failing to delete must not fail the checkpoint."""
        try:
            work(*arguments)
        except Exception as error:  # of any library
            self._say(f"old checkpoints cannot be deleted ({_describe(error, self._run_url)})")


def _written(directory: Path, files: Files) -> Iterator[tuple[Path, File]]:
    """Write the files one by one, as they are requested."""
    for name, pieces in files.items():
        yield directory / name, write_file(directory / name, pieces)


def _failing(error: Exception) -> Iterator[tuple[Path, File]]:
    """Stands for files that could not be written: the error is raised in the upload, and so reaches all ranks."""
    raise error
    yield


def _describe(error: Exception, run_url: str) -> str:
    """The cause of a failure in a few words."""
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return f"{run_url} is full"
    return storage.describe(error)
