"""Reports checkpoints to Ray Train, which stores nothing of them.

Ray Train writes a list of checkpoints after each report, and ends the run if that fails: a store that is away for
seconds, or full, would end a run that our own saves outlive. The list is not needed, since a restart finds the newest
checkpoint by the manifests (`checkpoint/restore.py`). So Ray Train gets a file system that takes everything and keeps
nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import ray.train
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem
from ray.train import Checkpoint, CheckpointUploadMode

MARKER = ".validate_storage_marker"  # Ray Train writes it in its controller, and expects every worker to see it


def no_storage() -> PyFileSystem:
    """The file system. Picklable."""
    return PyFileSystem(_Nothing())


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


class _Nothing(FileSystemHandler):
    """Takes everything and keeps nothing; only Ray Train's marker seems to be there."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Nothing)

    def __hash__(self) -> int:
        return hash(_Nothing)

    def get_type_name(self) -> str:
        return "nothing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [FileInfo(path, FileType.File if path.endswith(MARKER) else FileType.NotFound) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        return []

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        pass

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        pass

    def delete_root_dir_contents(self) -> None:
        pass

    def delete_file(self, path: str) -> None:
        pass

    def move(self, src: str, dest: str) -> None:
        pass

    def copy_file(self, src: str, dest: str) -> None:
        pass

    def open_output_stream(self, path: str, metadata: Any) -> pyarrow.NativeFile:
        return pyarrow.BufferOutputStream()

    def open_append_stream(self, path: str, metadata: Any) -> pyarrow.NativeFile:
        return pyarrow.BufferOutputStream()

    def open_input_stream(self, path: str) -> NoReturn:
        raise FileNotFoundError(path)

    def open_input_file(self, path: str) -> NoReturn:
        raise FileNotFoundError(path)
