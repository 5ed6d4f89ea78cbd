"""Saving with an unreachable store, a full disk or a missing bucket: all ranks make the same decisions."""

import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infra.local.ranks import run_ranks
from infra.local.stores import FaultyProxy, Server, gcs_server, reached_by
from orchestrator.checkpoint import snapshot
from orchestrator.checkpoint.manifest import CheckpointError, complete_checkpoints
from orchestrator.checkpoint.saver import Saver
from orchestrator.history.ledger import Ledger, trained_samples
from tests.orchestrator.checkpoint.saving import be_impatient, restored_step, set_state, stand_in
from tests.orchestrator.small_run import in_thread


@pytest.fixture(scope="module")
def bucket() -> Iterator[Server]:
    with gcs_server() as server:
        yield server


def new_saver(run: str, said: list[str]) -> tuple[object, Saver]:
    engine = stand_in()
    return engine, Saver(engine, run, 3, said.append, report=in_thread)


def save(engine: object, saver: Saver, step: int, *, wait: bool) -> None:
    set_state(engine, step)
    saver.save(step, {"steps": step}, {}, wait=wait)
    set_state(engine, step + 1)  # training continues at once


def test_an_upload_waits_for_an_outage_while_training_continues(bucket: Server) -> None:
    said, skipped, restored = run_ranks(2, saves_during_an_outage, bucket)[0]
    away, skipped_save, back = said
    assert "cannot reach gs://bucket/outage (" in away
    assert skipped_save.startswith("no checkpoint at step 2: step-000000001-")
    assert back == "gs://bucket/outage is back"
    assert (skipped, restored) == (2, 4)
    with reached_by(bucket) as url:
        assert [found.step for found in complete_checkpoints(f"{url}/outage")] == [4, 1]


def saves_during_an_outage(server: Server) -> tuple[list[str], int, int | None]:
    """Rank 0 alone cannot reach the store; rank 1 skips the same saves."""
    import torch.distributed as dist

    said: list[str] = []
    with FaultyProxy(server) as proxy:
        be_impatient(proxy.server if dist.get_rank() == 0 else server)
        engine, saver = new_saver("gs://bucket/outage", said)
        proxy.set(fail=1.0)
        save(engine, saver, 1, wait=False)
        while dist.get_rank() == 0 and not said:
            time.sleep(0.02)
        dist.barrier()
        save(engine, saver, 2, wait=False)
        save(engine, saver, 3, wait=False)
        proxy.set()
        save(engine, saver, 4, wait=True)
        return said, saver.skipped, restored_step("gs://bucket/outage")


def test_a_missing_bucket_ends_the_run_after_three_saves(bucket: Server) -> None:
    for said, error in run_ranks(2, saves_without_a_bucket, bucket):
        assert "3 checkpoints in a row failed, the last one: rank 0: FileNotFoundError" in error
        assert len(said) in (0, 3)
    waited = run_ranks(1, one_save_without_a_bucket, bucket)[0]
    assert waited.startswith("checkpoint step-000000001-")


def saves_without_a_bucket(server: Server) -> tuple[list[str], str]:
    said: list[str] = []
    be_impatient(server)
    engine, saver = new_saver("gs://missing/run", said)
    try:
        for step in range(1, 10):
            save(engine, saver, step, wait=False)
    except CheckpointError as error:
        assert step == 4
        return said, str(error)
    raise AssertionError("the run continued")


def one_save_without_a_bucket(server: Server) -> str:
    be_impatient(server)
    engine, saver = new_saver("gs://missing/run", [])
    with pytest.raises(CheckpointError) as caught:
        save(engine, saver, 1, wait=True)
    return str(caught.value)


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """One rank cannot write: all continue, the previous checkpoint remains, and the next save is complete."""
    said, failed = run_ranks(2, saves_with_a_limit, str(tmp_path / "run"))[0]
    (line,) = said
    assert "rank-00001 is full: rank-00001-of-00002.000.safetensors needs " in line
    assert line.endswith("; keeping the previous one")
    assert failed == 1
    assert [found.step for found in complete_checkpoints(str(tmp_path / "run"))] == [3, 1]
    assert len(list((tmp_path / "run").glob("step-*"))) == 2


def saves_with_a_limit(run: str) -> tuple[list[str], int]:
    import torch.distributed as dist

    said: list[str] = []
    engine, saver = new_saver(run, said)
    save(engine, saver, 1, wait=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # writing more fails as on a full disk
    save(engine, saver, 2, wait=False)
    while not saver.idle and dist.get_rank() == 1:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    dist.barrier()
    save(engine, saver, 3, wait=True)
    assert restored_step(run) == 3
    return said, saver.failed


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        said, steps = run_ranks(1, saves_until_full, str(tmp_path / "run"))[0]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert "is full" in said[0]
    assert steps == [2, 1]


def saves_until_full(run: str) -> tuple[list[str], list[int]]:
    said: list[str] = []
    engine, saver = new_saver(run, said)
    save(engine, saver, 1, wait=True)
    save(engine, saver, 2, wait=True)
    ballast = Path(run).parent / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(64 << 10))
    with pytest.raises(CheckpointError, match=r"is full"):
        save(engine, saver, 3, wait=True)
    assert restored_step(run) == 2
    return said, [found.step for found in complete_checkpoints(run)]


def test_without_memory_for_a_snapshot(tmp_path: Path) -> None:
    """The files are written while training waits. The checkpoint is the same, byte for byte."""
    run_ranks(2, saves_once, str(tmp_path / "with"), None)
    run_ranks(2, saves_once, str(tmp_path / "without"), 10_000)
    (some,), (none,) = (list(complete_checkpoints(str(tmp_path / name))) for name in ("with", "without"))
    assert some.files == none.files
    assert len(some.files) > 2  # several files per rank


def saves_once(run: str, memory: int | None) -> None:
    be_impatient()
    if memory is not None:
        snapshot.available_memory = lambda: memory
    engine, saver = new_saver(run, [])
    save(engine, saver, 1, wait=True)
    assert (saver._buffer._memory.numel() > 0) == (memory is None)
    assert restored_step(run) == 1


def test_unfinished_checkpoints_of_earlier_attempts_are_deleted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_ranks(1, saves_once, str(run), None)
    (complete,) = run.glob("step-*")
    for name in ("step-000000000-00000000", "step-000000009-00000000"):
        shutil.copytree(complete, run / name)
        (run / name / "manifest.json").unlink()
    staged = run / ".staging" / "rank-00007"
    staged.mkdir(parents=True)
    (staged / "rank-00007-of-00008.000.safetensors").write_bytes(b"x")
    (run / "samples").mkdir()
    run_ranks(1, starts, str(run))
    assert sorted(path.name for path in run.iterdir()) == ["samples", complete.name]


def starts(run: str) -> None:
    new_saver(run, [])


def test_the_ledger_repeats_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is missing from the ledger or is in it twice, however often a write fails or its answer is lost."""
    ledger = Ledger(str(tmp_path), rank=0, attempt=1)
    everything = torch.ones(3, dtype=torch.bool)
    ledger.record(0, torch.tensor([1, 2, 3]), everything)
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(OSError, match="samples"):
        ledger.write()
    ledger.record(1, torch.tensor([4, 5, 6]), torch.tensor([True, False, True]))
    (tmp_path / "samples").unlink()
    ledger.write()
    ledger.write()
    assert trained_samples(str(tmp_path)) == {0: [1, 2, 3], 1: [4, 6]}
