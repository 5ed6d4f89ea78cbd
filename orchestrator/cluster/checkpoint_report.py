"""Reports checkpoints to Ray Train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode


def through_ray(metrics: dict[str, Any], directory: Path, name: str, upload: Callable[[], None]) -> None:
    """Report a checkpoint to Ray Train, which runs `upload` in its own thread and then registers the checkpoint."""
    run = ray.train.get_context().get_storage()

    def upload_checkpoint(local: Checkpoint, name: str) -> Checkpoint:
        upload()
        return Checkpoint(f"{run.experiment_fs_path}/{name}", run.storage_filesystem)

    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(directory),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=upload_checkpoint,
        delete_local_checkpoint_after_upload=False,  # `upload` does
    )
