"""Ray Train's own storage keeps nothing, so no outage of a store reaches it."""

import asyncio
import pickle
from pathlib import Path

import pyarrow.fs
import pytest
from ray.train import Checkpoint, CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport

from orchestrator.cluster.checkpoint_report import no_storage


@pytest.fixture
def context(tmp_path: Path) -> StorageContext:
    return StorageContext(str(tmp_path / "runs"), "a run", storage_filesystem=no_storage())


def test_ray_finds_its_marker_and_leaves_no_file(context: StorageContext, tmp_path: Path) -> None:
    there = pickle.loads(pickle.dumps(context))  # as a worker gets it
    there._check_validation_file()
    assert there.storage_filesystem == no_storage()
    assert not any(tmp_path.iterdir())


def test_ray_registers_checkpoints_without_a_store(context: StorageContext, tmp_path: Path) -> None:
    async def register() -> dict[str, int]:  # in a loop, as in Ray Train's controller
        manager = CheckpointManager(CheckpointConfig(num_to_keep=None), context)
        for step in (1, 2):
            checkpoint = Checkpoint(f"{context.experiment_fs_path}/step-{step}", context.storage_filesystem)
            manager.register_checkpoint(_TrainingReport(checkpoint, {"step": step}, False))
        again = CheckpointManager(CheckpointConfig(num_to_keep=None), context)
        assert again.latest_checkpoint_result is None, "a restart finds its checkpoint by the manifests"
        return manager.latest_checkpoint_result.metrics

    assert asyncio.run(register()) == {"step": 2}
    assert not any(tmp_path.iterdir())


def test_nothing_is_there() -> None:
    nothing = no_storage()
    nothing.create_dir("a/b", recursive=True)
    with nothing.open_output_stream("a/b/c") as file:
        file.write(b"content")
    assert nothing.get_file_info("a/b/c").type == pyarrow.fs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        nothing.open_input_stream("a/b/c")
    nothing.delete_file("a/b/c")
    nothing.delete_dir("a")
