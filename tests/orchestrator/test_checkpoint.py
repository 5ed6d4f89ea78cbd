"""Checkpoints: any stage and world size reads them, damage is noticed, and nothing in them is executed."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.checkpoint import MANIFEST, CheckpointError, Manifest, complete_checkpoints, prune, publish, restore
from tests.orchestrator.ranks import run_ranks
from tests.orchestrator.small_run import Curve, build_engine, train_digits

SAVED, END = 6, 12


def train(
    shards: str, stage: int, steps: int, save: str | None, resume: str | None, options: dict[str, object]
) -> Curve:
    return train_digits(shards, stage, steps, save, resume, **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's tensors, put together from its fragments by its own manifest."""
    manifest = next(complete_checkpoints(str(run)))
    files = {name: load_file(run / manifest.name / name) for name in manifest.files}
    whole: dict[str, torch.Tensor] = {}
    for state, name, start, numel, file in manifest.fragments:
        target = whole.setdefault(f"{state}/{name}", torch.full((manifest.parameters[name],), torch.nan))
        assert torch.isnan(target[start : start + numel]).all(), "an element is in two fragments"
        target[start : start + numel] = files[file][f"{state}/{name}@{start}"]
    assert not any(torch.isnan(tensor).any() for tensor in whole.values()), "an element is in no fragment"
    return whole


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_at_two_workers_resumes_at_one_two_and_three(digits: Path, tmp_path: Path, stage: int) -> None:
    shards, run = str(digits / "train"), tmp_path / "run"
    uninterrupted = run_ranks(2, train, shards, stage, END, str(tmp_path / "whole"), None, {})[0]
    run_ranks(2, train, shards, stage, SAVED, str(run), None, {})
    for world_size in (1, 2, 3):
        resumed = run_ranks(world_size, train, shards, stage, END, str(tmp_path / f"w{world_size}"), str(run), {})[0]
        assert resumed.losses == pytest.approx(uninterrupted.losses[SAVED:], rel=1e-5)
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "w2")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole), "same world size: bitwise"


@pytest.mark.parametrize(("saved_at", "resumed_at"), [(0, 3), (1, 2), (2, 0), (3, 1)])
def test_another_stage_resumes(digits: Path, tmp_path: Path, saved_at: int, resumed_at: int) -> None:
    shards, run = str(digits / "train"), str(tmp_path / "run")
    uninterrupted = run_ranks(2, train, shards, saved_at, END, None, None, {})[0]
    run_ranks(2, train, shards, saved_at, SAVED, run, None, {})
    resumed = run_ranks(1, train, shards, resumed_at, END, None, run, {})[0]
    assert resumed.losses == pytest.approx(uninterrupted.losses[SAVED:], rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_runs_keep_their_float32_weights(digits: Path, tmp_path: Path, stage: int) -> None:
    shards, run, options = str(digits / "train"), tmp_path / "run", {"precision": "bf16"}
    uninterrupted = run_ranks(2, train, shards, stage, END, None, None, options)[0]
    run_ranks(2, train, shards, stage, SAVED, str(run), None, options)
    resumed = run_ranks(2, train, shards, stage, END, None, str(run), options)[0]
    assert resumed.losses == uninterrupted.losses[SAVED:]
    head = weights(run)["weight/head.weight"]
    assert head.dtype == torch.float32
    assert not torch.equal(head, head.bfloat16().float()), "more than bf16 holds"


def test_sgd_momentum_is_restored(digits: Path, tmp_path: Path) -> None:
    shards, run, options = str(digits / "train"), tmp_path / "run", {"sgd": True}
    uninterrupted = run_ranks(2, train, shards, 2, END, None, None, options)[0]
    run_ranks(2, train, shards, 2, SAVED, str(run), None, options)
    resumed = run_ranks(2, train, shards, 2, END, None, str(run), options)[0]
    assert resumed.losses == uninterrupted.losses[SAVED:]


@pytest.fixture(scope="module")
def two_checkpoints(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with complete checkpoints at steps 2 and 4, written by two workers."""
    run = tmp_path_factory.mktemp("two") / "run"
    for step in (2, 4):
        run_ranks(2, train, str(digits / "train"), 1, step, str(run), None, {})
    return run


def newest(run: Path) -> Path:
    return max(run.glob("step-*"))


def damage_nothing(folder: Path) -> None:
    pass


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def truncate_shard(folder: Path) -> None:
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


def remove_shard(folder: Path) -> None:
    min(folder.glob("*.safetensors")).unlink()


def flip_a_bit(folder: Path) -> None:
    shard = max(folder.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)


def foreign_file(folder: Path) -> None:
    """Another checkpoint's shard of the same size under the right name."""
    shard = min(folder.glob("*.safetensors"))
    shutil.copyfile(min(min(folder.parent.glob("step-*")).glob("*.safetensors")), shard)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_nothing, 4),
        (remove_manifest, 2),
        (truncate_manifest, 2),
        (truncate_shard, 2),
        (remove_shard, 2),
        (flip_a_bit, 2),
        (foreign_file, 2),
    ],
)
def test_the_newest_intact_checkpoint_is_used(
    two_checkpoints: Path, tmp_path: Path, damage: object, expected: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    damage(newest(run))  # type: ignore[operator]
    assert run_ranks(2, restored_step, str(run)) == [expected, expected]


def restored_step(run: str) -> int | None:
    manifest = restore(build_engine(1), run)
    return manifest.step if manifest else None


def test_an_empty_run_restores_nothing(tmp_path: Path) -> None:
    assert run_ranks(1, restored_step, str(tmp_path / "absent")) == [None]


def test_another_models_checkpoint_is_refused(two_checkpoints: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    path = newest(run) / MANIFEST
    record = json.loads(path.read_text())
    record["parameters"]["head.bias"] = 1000
    path.write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match=r"head\.bias differs from this job's model"):
        run_ranks(1, restored_step, str(run))


def test_a_manifest_cannot_name_files_elsewhere(two_checkpoints: Path) -> None:
    record = json.loads((newest(two_checkpoints) / MANIFEST).read_text())
    for harm in ("../../outside.safetensors", "/etc/passwd", "rank-00000-of-00001.000.safetensors/../x"):
        named = {**record, "files": {**record["files"], harm: {"bytes": 1, "sha256": ""}}}
        with pytest.raises(ValueError, match="no file of a checkpoint"):
            Manifest.parse("x", json.dumps(named))
        fragment = ["weight", "head.bias", 0, 1, harm]
        with pytest.raises(ValueError, match="no file of a checkpoint"):
            Manifest.parse("x", json.dumps({**record, "fragments": [*record["fragments"], fragment]}))


def test_a_pickle_in_place_of_a_shard_is_not_run(two_checkpoints: Path, tmp_path: Path) -> None:
    """Even with a manifest that vouches for it: loading reads safetensors and nothing else."""
    import hashlib
    import pickle

    run, marker = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(two_checkpoints, run)
    shutil.rmtree(min(run.glob("step-*")))

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(marker), "w"))  # type: ignore[return-value]

    folder = newest(run)
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(pickle.dumps(Hostile()))
    record = json.loads((folder / MANIFEST).read_text())
    record["files"][shard.name] = {
        "bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match="none of 1 checkpoints is intact"):
        run_ranks(2, restored_step, str(run))
    assert not marker.exists()


def test_storage_that_cannot_be_read_is_no_damage(two_checkpoints: Path, tmp_path: Path) -> None:
    """Falling back, or starting over, because of an outage would throw good work away."""
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    shard = min(newest(run).glob("*.safetensors"))
    size = shard.stat().st_size
    shard.unlink()
    shard.mkdir()  # reading it raises IsADirectoryError
    path = newest(run) / MANIFEST
    record = json.loads(path.read_text())
    record["files"][shard.name]["bytes"] = shard.stat().st_size
    path.write_text(json.dumps(record))
    assert size > 0
    with pytest.raises(RuntimeError, match="IsADirectoryError"):
        run_ranks(2, restored_step, str(run))


def test_pruning_keeps_the_newest_and_what_is_being_written(two_checkpoints: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    older, newer = sorted(path.name for path in run.glob("step-*"))
    unfinished = [run / f"step-{step:09d}-00000000" for step in (1, 3, 9)]
    for folder in unfinished:
        folder.mkdir()
    prune(str(run), keep=2)
    left = sorted(path.name for path in run.glob("step-*"))
    assert left == [older, newer, unfinished[2].name]
    prune(str(run), keep=1)
    assert sorted(path.name for path in run.glob("step-*")) == [newer, unfinished[2].name]


def test_the_restored_step_counter_is_where_the_weights_are(two_checkpoints: Path) -> None:
    """torch's fused AdamW reads it on the device of the parameter; a CPU can only show that it is not left behind."""
    steps, devices = run_ranks(2, restored_counters, str(two_checkpoints))[0]
    assert steps == {4.0}
    assert devices


def restored_counters(run: str) -> tuple[set[float], bool]:
    engine = build_engine(1)
    restore(engine, run)
    state = engine.deepspeed.basic_optimizer.state
    same = all(values["step"].device == flat.device for flat, values in state.items())
    return {float(values["step"]) for values in state.values()}, same


def test_publishing_to_an_object_store(two_checkpoints: Path, tmp_path: Path) -> None:
    """fsspec's memory store has an object store's interface: whole-object puts, no rename."""
    source = newest(two_checkpoints)
    record = json.loads((source / MANIFEST).read_text())
    for rank in (1, 0):  # rank 0 last, since it waits for the others
        staging = tmp_path / f"staging-{rank}"
        staging.mkdir()
        prefix = f"rank-{rank:05d}-of-00002"
        for shard in source.glob(f"{prefix}*.safetensors"):
            shutil.copy(shard, staging)
        fragments = [f for f in record["fragments"] if f[4].startswith(prefix)]
        part = {"fragments": fragments, "parameters": record["parameters"]}
        (staging / "part.json").write_text(json.dumps(part))
        publish(
            staging,
            f"memory://bucket/run/{source.name}",
            rank=rank,
            world_size=2,
            step=4,
            totals={"steps": 4},
            metrics={},
        )
    fs = fsspec.filesystem("memory")
    left = {path.rsplit("/", 1)[-1] for path in fs.ls(f"/bucket/run/{source.name}", detail=False)}
    assert left == {MANIFEST, *(path.name for path in source.glob("*.safetensors"))}
    assert next(complete_checkpoints("memory://bucket/run")).files == record["files"]
    assert run_ranks(1, restore_from_memory, str(source))[0] == 4


def restore_from_memory(source: str) -> int:
    """In another process the memory store is empty: fill it, then restore through downloads."""
    fs = fsspec.filesystem("memory")
    for path in Path(source).iterdir():
        fs.pipe_file(f"/bucket/run/{Path(source).name}/{path.name}", path.read_bytes())
    manifest = restore(build_engine(1), "memory://bucket/run")
    assert manifest is not None
    return manifest.step


def test_a_rank_that_never_uploads_leaves_no_checkpoint(
    two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.checkpoint.PARTS_TIMEOUT", 0.2)
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "part.json").write_text(json.dumps({"fragments": [], "parameters": {}}))
    with pytest.raises(CheckpointError, match="1 of 2 ranks did not finish"):
        publish(
            staging, str(tmp_path / "run/step-000000001-00000000"), rank=0, world_size=2, step=1, totals={}, metrics={}
        )
    assert list(complete_checkpoints(str(tmp_path / "run"))) == []
