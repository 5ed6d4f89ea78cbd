"""Checkpoints through Ray Train: staged while training waits, uploaded beside it, at most one upload at a time."""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from orchestrator.checkpoint import new_name, prune, publish, stage
from orchestrator.engine import Engine


class Saver:
    """Saves one run's checkpoints from inside a Ray Train worker.

    Args:
        engine: what is saved.
        run_url: the run's folder, which is also Ray Train's.
        keep: newest checkpoints that stay.
    """

    def __init__(self, engine: Engine, run_url: str, keep: int) -> None:
        self._engine, self._run_url, self._keep = engine, run_url, keep
        self._idle = threading.Event()
        self._idle.set()
        fs, folder = fsspec.core.url_to_fs(run_url)
        if "file" in fs.protocol:  # on the same disk as its destination: publishing is a rename
            parent = Path(folder) / ".staging"
        else:
            run = hashlib.sha256(run_url.encode()).hexdigest()[:12]
            parent = Path(tempfile.gettempdir()) / f"vit-staging-{os.getuid()}-{run}"
        self._staging = parent / f"rank-{dist.get_rank():05d}"
        shutil.rmtree(self._staging, ignore_errors=True)  # what a killed worker of this run left

    def save(self, step: int, totals: dict[str, Any], metrics: dict[str, float], *, last: bool) -> float:
        """Save the state after `step` steps. Returns once it is staged, or, for the `last` one, complete.

        Every rank must call it at the same step. A failed upload ends the worker, and Ray Train restarts the group.

        Args:
            totals: the accounting totals, restored with the weights.
            metrics: what Ray Train shows beside the checkpoint.

        Returns:
            Seconds that training stood still.
        """
        began = time.monotonic()
        self._idle.wait()  # the upload before this one
        directory = self._staging / f"{step:09d}"
        directory.mkdir(parents=True)
        stage(self._engine, directory)
        rank, world = dist.get_rank(), dist.get_world_size()
        storage = ray.train.get_context().get_storage()
        self._idle.clear()

        def upload(local: Checkpoint, name: str) -> Checkpoint:
            try:
                publish(
                    Path(local.path),
                    f"{self._run_url}/{name}",
                    rank=rank,
                    world_size=world,
                    step=step,
                    totals=totals,
                    metrics=metrics,
                )
                if rank == 0:
                    prune(self._run_url, self._keep)
            finally:
                self._idle.set()
            return Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

        ray.train.report(
            {"step": step, **metrics},
            checkpoint=Checkpoint.from_directory(directory),
            checkpoint_dir_name=new_name(step),  # rank 0's counts
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if last else CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )
        return time.monotonic() - began
