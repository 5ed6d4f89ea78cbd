"""Checkpoints: the newest intact one is restored, damage is noticed, and nothing in them is executed."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from infra.local.ranks import run_ranks
from infra.local.stores import FaultyProxy, Server, s3_server
from orchestrator.checkpoint.manifest import MANIFEST, Manifest, complete_checkpoints, prune
from orchestrator.checkpoint.notes import MARK
from orchestrator.checkpoint.restore import restore
from tests.orchestrator.checkpoint import saving
from tests.orchestrator.small_run import (
    build_engine,
    in_thread,
    train_digits,
)


@pytest.fixture(scope="module")
def two_checkpoints(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with complete checkpoints at steps 2 and 4, written by two workers."""
    run = tmp_path_factory.mktemp("two") / "run"
    for step in (2, 4):
        run_ranks(2, train_digits, str(digits / "train"), 1, step, str(run), None)
    return run


def newest(run: Path) -> Path:
    return max(run.glob("step-*"))


def with_digest(record: dict[str, object]) -> str:
    """A manifest with the right digest of itself."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return json.dumps({**rest, "digest": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()})


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
    """Replace a file with that of another checkpoint, of the same size."""
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
    with pytest.raises(RuntimeError, match=r"differs from this job's model; use another run name"):
        run_ranks(1, saving.restored_step, str(run))


def test_a_manifest_cannot_name_files_elsewhere(two_checkpoints: Path) -> None:
    record = json.loads((newest(two_checkpoints) / MANIFEST).read_text())
    file = next(iter(record["files"].values()))
    for harm in ("../../outside.safetensors", "/etc/passwd", "rank-00000-of-00001.000.safetensors/../x"):
        with pytest.raises(ValueError, match=r"^files\..*should match pattern"):
            Manifest.parse("x", with_digest({**record, "files": {**record["files"], harm: file}}))
        fragment = ["weight", "head.bias", 0, 1, harm]
        with pytest.raises(ValueError, match=r"^fragments\..*should match pattern"):
            Manifest.parse("x", with_digest({**record, "fragments": [*record["fragments"], fragment]}))


def test_a_pickle_in_place_of_a_shard_is_not_run(two_checkpoints: Path, tmp_path: Path) -> None:
    """Not even with a valid manifest: loading reads only safetensors."""
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
    (folder / MANIFEST).write_text(with_digest(record))
    with pytest.raises(RuntimeError, match="none of its checkpoints is intact"):
        run_ranks(2, restored_step, str(run))
    assert not marker.exists()


def test_a_file_that_cannot_be_read_is_damage(two_checkpoints: Path, tmp_path: Path) -> None:
    """Not the store: everything else in it can be read."""
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    shard = min(newest(run).glob("*.safetensors"))
    shard.unlink()
    shard.mkdir()  # reading it raises IsADirectoryError
    path = newest(run) / MANIFEST
    record = json.loads(path.read_text())
    record["files"][shard.name]["bytes"] = shard.stat().st_size
    path.write_text(with_digest(record))
    assert run_ranks(2, restored_step, str(run)) == [2, 2]


def test_pruning_keeps_the_newest_complete_ones(two_checkpoints: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_checkpoints, run)
    older, newer = sorted(path.name for path in run.glob("step-*"))
    unfinished = [run / f"step-{step:09d}-00000000" for step in (1, 3, 9)]
    for folder in unfinished:
        folder.mkdir()
    prune(str(run), keep=2)
    left = sorted(path.name for path in run.glob("step-*"))
    assert left == [older, newer]
    truncate_shard(run / newer)
    prune(str(run), keep=1)
    assert sorted(path.name for path in run.glob("step-*")) == [older, newer], (
        "a damaged checkpoint may be repaired, so it stays"
    )
    shutil.copytree(two_checkpoints / newer, run / newer, dirs_exist_ok=True)
    prune(str(run), keep=1)
    assert sorted(path.name for path in run.glob("step-*")) == [newer]


def test_the_restored_step_counter_is_where_the_weights_are(two_checkpoints: Path) -> None:
    """torch's fused AdamW reads it on the parameter's device. On a CPU this only shows that it is restored."""
    steps, devices = run_ranks(2, restored_counters, str(two_checkpoints))[0]
    assert steps == {4.0}
    assert devices


def restored_counters(run: str) -> tuple[set[float], bool]:
    engine = build_engine(1)
    restore(engine, run)
    state = engine.deepspeed.basic_optimizer.state
    same = all(values["step"].device == flat.device for flat, values in state.items())
    return {float(values["step"]) for values in state.values()}, same


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with complete checkpoints of a known state at steps 1 and 2."""
    run = tmp_path_factory.mktemp("saved") / "run"
    run_ranks(2, save_two, str(run))
    return run


def save_two(run: str) -> None:
    from orchestrator.checkpoint.saver import Saver

    saving.be_impatient()
    engine = saving.stand_in()
    saver = Saver(engine, run, 9, print, report=in_thread)
    for step in (1, 2):
        saving.set_state(engine, step)
        saver.save(step, {"steps": step}, {}, wait=True)


def test_no_changed_byte_is_ever_restored(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    steps = run_ranks(1, restore_damaged, str(run))[0]
    assert steps["safetensors"] == {1}
    assert 1 in steps["json"]


def restore_damaged(run: str) -> dict[str, set[int | None]]:
    """Steps that are restored, each exactly, after changes of one to three random bytes; by suffix of the file."""
    dice, found = random.Random(3), {"json": set[int | None](), "safetensors": set[int | None]()}
    files = sorted(newest(Path(run)).iterdir())
    for number in range(150):
        path = files[-1 - number % len(files)]
        intact = path.read_bytes()
        damaged = bytearray(intact)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(damaged))] ^= dice.randint(1, 255)
        path.write_bytes(damaged)
        if damaged != intact:
            found[path.suffix[1:]].add(saving.restored_step(run))
            (path.parent / MARK).unlink(missing_ok=True)
        path.write_bytes(intact)
    assert saving.restored_step(run) == 2
    return found


def deep(record: dict[str, object]) -> str:
    return '{"totals": ' + "[" * 100_000


def odd_number(record: dict[str, object]) -> str:
    return with_digest({**record, "step": 10**30})


def of_another_step(record: dict[str, object]) -> str:
    return with_digest({**record, "step": 7})


def with_a_gap(record: dict[str, object]) -> str:
    return with_digest({**record, "fragments": record["fragments"][1:]})  # type: ignore[index]


def with_an_overlap(record: dict[str, object]) -> str:
    return with_digest({**record, "fragments": [*record["fragments"], record["fragments"][0]]})  # type: ignore[misc,index]


def without_digest(record: dict[str, object]) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "digest"})


def with_more_keys(record: dict[str, object]) -> str:
    return with_digest({**record, "code": "x"})


def no_object(record: dict[str, object]) -> str:
    return "[1, 2]"


def no_text(record: dict[str, object]) -> str:
    return "\ud800"


@pytest.mark.parametrize(
    "harm",
    [
        deep,
        odd_number,
        of_another_step,
        with_a_gap,
        with_an_overlap,
        without_digest,
        with_more_keys,
        no_object,
        no_text,
    ],
)
def test_a_hostile_manifest_is_named_and_skipped(saved: Path, tmp_path: Path, harm: object) -> None:
    run, warned = tmp_path / "run", list[str]()
    shutil.copytree(saved, run)
    path = newest(run) / MANIFEST
    text = harm(json.loads(path.read_text()))  # type: ignore[operator]
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert [found.step for found in complete_checkpoints(str(run), warned.append)] == [1]
    (line,) = warned
    assert line.startswith(f"checkpoint {path.parent.name}: unreadable manifest (")
    assert "\n" not in line
    assert len(line) < 300


def test_an_absurdly_large_manifest_is_not_read(saved: Path, tmp_path: Path) -> None:
    run, warned = tmp_path / "run", list[str]()
    shutil.copytree(saved, run)
    os.truncate(newest(run) / MANIFEST, 1 << 40)  # a sparse file: it takes no space
    assert [found.step for found in complete_checkpoints(str(run), warned.append)] == [1]
    assert "bytes are too many" in warned[0]


def test_foreign_files_change_nothing(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    (newest(run) / "rank-00007-of-00008.000.safetensors").write_bytes(b"x")
    (newest(run) / "part-00000.json").write_text("{}")
    (run / "step-000000099-0000000g").mkdir()
    (run / "step-000000098-00000000").write_text("no folder")
    assert run_ranks(1, saving.restored_step, str(run)) == [2]


def test_if_every_checkpoint_is_damaged_the_run_does_not_start_over(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    for manifest in run.glob(f"*/{MANIFEST}"):
        manifest.write_text("{")
    with pytest.raises(RuntimeError, match="none of its checkpoints is intact"):
        run_ranks(1, saving.restored_step, str(run))


def test_a_manifest_of_format_1_is_read(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    path = newest(run) / MANIFEST
    path.write_text(without_digest({**json.loads(path.read_text()), "format": 1}))
    assert run_ranks(1, saving.restored_step, str(run)) == [2]


def test_a_start_waits_for_an_unreachable_bucket(saved: Path) -> None:
    """Neither an outage nor a truncated answer counts as damage."""
    with s3_server() as server:
        said, step = run_ranks(1, restore_through_an_outage, server, str(saved))[0]
    assert step == 2
    assert "cannot reach s3://bucket/run (" in said[0]
    assert said[1].endswith(" is back")


def restore_through_an_outage(server: Server, source: str) -> tuple[list[str], int]:
    from data import storage

    said: list[str] = []
    with FaultyProxy(server) as proxy:
        saving.be_impatient(proxy.server)
        for path in Path(source).glob("step-*/*"):
            storage.write_atomic(f"s3://bucket/run/{path.parent.name}/{path.name}", path.read_bytes())
        proxy.set(fail=1.0)

        def say(line: str) -> None:
            said.append(line)
            proxy.set(truncate=0.3)

        engine = saving.stand_in()
        manifest = restore(engine, "s3://bucket/run", warn=say)
        assert manifest is not None
        assert saving.has_state(engine, manifest.step)
        return said, manifest.step
