"""What a run went back from never counts again, and what is not the run's own is neither used nor deleted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local.ranks import run_ranks
from infra.local.stores import Server, s3_server
from orchestrator.checkpoint import manifest as manifests
from orchestrator.checkpoint import notes
from orchestrator.checkpoint import restore as restoring
from orchestrator.checkpoint.manifest import MANIFEST, complete_checkpoints, passed_over, prune
from orchestrator.checkpoint.notes import MARK, OWNER, Owner
from orchestrator.checkpoint.restore import restore
from orchestrator.checkpoint.saver import Saver
from tests.orchestrator.checkpoint import saving
from tests.orchestrator.small_run import in_thread

OURS, THEIRS = (Owner(letter * 32, 120, frozenset(["steps", "samples", "flops"])) for letter in "ab")


def save(run: str, *steps: int, keep: int = 9, owner: Owner | None = OURS) -> list[str]:
    """Save the states after these steps, as one attempt does; returns what the terminal showed."""
    engine, said = saving.stand_in(), list[str]()
    saver = Saver(engine, run, keep, said.append, report=in_thread, owner=owner)
    for step in steps:
        saving.set_state(engine, step)
        saver.save(step, {"steps": step}, {}, wait=True)
    return said


def resume(run: str, owner: Owner | None = OURS) -> tuple[int | None, list[str]]:
    """The step that a start restores, exactly, and what the terminal showed."""
    engine, said = saving.stand_in(), list[str]()
    found = restore(engine, run, said.append, owner)
    if found is None:
        return None, said
    assert saving.has_state(engine, found.step)
    return found.step, said


def steps_in(run: str) -> list[int]:
    return sorted(int(path.name[5:14]) for path in Path(run).glob("step-*"))


def folder(run: str, step: int) -> Path:
    (found,) = Path(run).glob(f"step-{step:09d}-*")
    return found


def flip_a_bit(run: str, step: int) -> None:
    """The size stays, so that only a reader of the whole file notices."""
    path = min(folder(run, step).glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours with checkpoints at steps 40, 60 and 80."""
    run = tmp_path_factory.mktemp("saved") / "run"
    run_ranks(1, save, str(run), 40, 60, 80)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> str:
    """A copy of it."""
    return str(shutil.copytree(saved, tmp_path / "run"))


# ------------------------------------------------------------------------------------------------- going back


def test_what_is_written_after_going_back_is_kept(run: str) -> None:
    run_ranks(1, goes_back, run)


def goes_back(run: str) -> None:
    """The newest checkpoint is damaged; the run continues, keeping one, is killed, and continues again."""
    flip_a_bit(run, 80)
    reason = f"{shard(run, 80)} does not match its SHA-256"
    assert resume(run) == (60, [f"checkpoint {folder(run, 80).name}: {reason}; using the previous one"])
    mark = json.loads((folder(run, 80) / MARK).read_text())
    assert mark == {"reason": reason, "continued_from": folder(run, 60).name}
    assert [found.step for found in complete_checkpoints(run)] == [60, 40]
    save(run, 65, keep=1)
    assert steps_in(run) == [65, 80]
    assert resume(run) == (65, [])
    save(run, 70, keep=9)
    save(run, 85, keep=2)  # later than the damaged one, which goes now
    assert steps_in(run) == [70, 85]


def shard(run: str, step: int) -> str:
    return min(folder(run, step).glob("*.safetensors")).name


def test_the_same_step_again(run: str) -> None:
    """A step that was left behind is reached again: the new checkpoint is used, whatever its random suffix."""
    assert run_ranks(1, reaches_it_again, run)[0] == [0, 1] * 4


def reaches_it_again(run: str) -> list[int]:
    found = []
    for attempt in range(4):
        flip_a_bit(run, 80)
        resume(run)
        found.append(len([name for name in complete_checkpoints(run) if name.step == 80]))
        save(run, 80, keep=3)
        found.append(len(list(Path(run).glob("step-000000080-*"))))
        assert resume(run) == (80, []), attempt
    return found


def test_of_two_at_one_step_the_later_one_is_newer(run: str) -> None:
    assert run_ranks(1, saves_one_step_repeatedly, run) == [True]


def saves_one_step_repeatedly(run: str) -> bool:
    for _ in range(6):
        before = {path.name for path in Path(run).glob("step-*")}
        save(run, 80)
        (new,) = {path.name for path in Path(run).glob("step-*")} - before
        engine = saving.stand_in()
        found = restore(engine, run, print, OURS)
        assert found is not None
        assert found.name == new
    return True


def test_one_failed_read_marks_nothing(run: str) -> None:
    for step, said, marks in run_ranks(2, reads_badly_once, run):
        assert (step, said, marks) == (80, [], [])


def reads_badly_once(run: str) -> tuple[int | None, list[str], list[str]]:
    """Every file's first read fails: the manifests' on rank 0, the shards' on rank 1."""
    import torch.distributed as dist

    seen = set[str]()

    def once(read: Callable[..., object], wrong: Callable[..., object]) -> Callable[..., object]:
        def reading(place: object, **options: object) -> object:
            if str(place) in seen:
                return read(place, **options)
            seen.add(str(place))
            return wrong(place)

        return reading

    if dist.get_rank() == 0:
        real = manifests.storage.read
        manifests.storage.read = once(real, lambda url: real(url)[:-20])  # type: ignore[attr-defined, assignment]
    else:
        restoring.sha256 = once(restoring.sha256, lambda path: "0" * 64)  # type: ignore[assignment]
    step, said = resume(run)
    return step, said, passed_over(run)


def test_several_ranks_leave_one_mark(run: str) -> None:
    """One rank alone finds damage: all go back, and one line says which file."""
    results = run_ranks(2, one_rank_reads_badly, run)
    assert [step for step, _ in results] == [60, 60]
    (line,) = results[0][1]
    assert line.endswith("safetensors does not match its SHA-256; using the previous one")
    assert results[1][1] == []
    assert [path.parent.name[5:14] for path in Path(run).glob(f"*/{MARK}")] == ["000000080"]


def one_rank_reads_badly(run: str) -> tuple[int | None, list[str]]:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        real = restoring.sha256
        restoring.sha256 = lambda path, **options: (  # type: ignore[misc]
            "0" * 64 if "step-000000080" in str(path) else real(path, **options)
        )
    return resume(run)


def test_without_a_mark_nothing_later_counts_either(run: str) -> None:
    """A mark that cannot be written costs nothing that is saved from then on."""
    step, said, left, again, marks = run_ranks(1, cannot_mark, run)[0]
    assert step == 60
    assert "it cannot be marked as passed over (PermissionError" in said[-1]
    assert left == [65, 80]
    assert again == 65
    assert marks == 1


def cannot_mark(run: str) -> tuple[int | None, list[str], list[int], int | None, int]:
    flip_a_bit(run, 80)

    def refuse(folder: str, reason: str, used: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    restoring.pass_over = manifests.pass_over = refuse  # type: ignore[assignment]
    step, said = resume(run)
    save(run, 65, keep=1)
    left = steps_in(run)
    again, _ = resume(run)
    restoring.pass_over = manifests.pass_over = notes.pass_over  # type: ignore[assignment]
    save(run, 70, keep=2)
    return step, said, left, again, len(passed_over(run))


def test_a_mark_counts_whatever_is_in_it(run: str) -> None:
    for content in (b"", b"\xff\x00", b"{"):
        (folder(run, 80) / MARK).write_bytes(content)
        assert run_ranks(1, resume, run) == [(60, [])]
    (folder(run, 80) / MARK).unlink()
    assert run_ranks(1, resume, run) == [(80, [])]


def test_only_marked_ones_are_no_reason_to_start_over(run: str) -> None:
    for path in Path(run).glob("step-*"):
        (path / MARK).write_text("{}")
    with pytest.raises(RuntimeError, match=r"none of its checkpoints is intact.*without the file passed_over\.json"):
        run_ranks(1, resume, run)


def test_a_save_into_a_marked_folder_takes_the_mark_away(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random suffix may come twice."""
    (folder(run, 80) / MARK).write_text("{}")
    step, marked = run_ranks(1, saves_there, run)[0]
    assert (step, marked) == (80, [])


def saves_there(run: str) -> tuple[int | None, list[str]]:
    from orchestrator.checkpoint import saver

    name = folder(run, 80).name
    saver.new_name = lambda step, suffix: name  # type: ignore[assignment]
    save(run, 80)
    return resume(run)[0], passed_over(run)


def test_nothing_is_deleted_or_marked_unless_the_new_one_is_fit(run: str) -> None:
    prune(run, 1, newest="step-000000065-00000000")
    torn = folder(run, 60) / MANIFEST
    intact = torn.read_bytes()
    torn.write_bytes(intact[:-9])
    prune(run, 1, newest=torn.parent.name)
    torn.write_bytes(intact)
    assert steps_in(run) == [40, 60, 80]
    assert passed_over(run) == []


def test_going_back_in_a_bucket() -> None:
    with s3_server() as server:
        assert run_ranks(2, goes_back_in_a_bucket, server) == [(60, [65, 60], 65)] * 2


def goes_back_in_a_bucket(server: Server) -> tuple[int | None, list[int], int | None]:
    import torch.distributed as dist

    from data import storage

    saving.be_impatient(server)
    run = "s3://bucket/back"
    save(run, 60, 80)
    if dist.get_rank() == 0:
        (name,) = storage.matching(run, "step-000000080-*")
        (file, *_) = storage.matching(f"{run}/{name}", "*.safetensors")
        content = storage.read(f"{run}/{name}/{file}")
        storage.write_atomic(f"{run}/{name}/{file}", content[:-1] + bytes([content[-1] ^ 1]))
    dist.barrier()
    step, _ = resume(run)
    save(run, 65, keep=2)
    dist.barrier()
    return step, [found.step for found in complete_checkpoints(run)], resume(run)[0]


# ------------------------------------------------------------------------------------------------- whose it is


def place(run: str, other: Path, step: int) -> Path:
    """Put a checkpoint of another run beside ours."""
    source = folder(str(other), step)
    return Path(shutil.copytree(source, Path(run) / source.name))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run, with checkpoints at steps 20 and 100."""
    run = tmp_path_factory.mktemp("theirs") / "run"
    run_ranks(1, save_theirs, str(run))
    return run


def save_theirs(run: str) -> None:
    save(run, 20, 100, owner=THEIRS)


def test_another_runs_checkpoint_is_passed_over_and_stays(run: str, theirs: Path) -> None:
    placed = [place(run, theirs, step) for step in (20, 100)]
    ((step, said),) = run_ranks(1, resume, run)
    assert step == 80
    assert said == [
        f"checkpoint {placed[1].name}: {OWNER}: it belongs to the run {'b' * 32}, and this is {'a' * 32}; "
        "it is passed over"
    ]
    run_ranks(1, save_and_keep_one, run)
    assert steps_in(run) == [20, 90, 100]
    assert all((path / MANIFEST).exists() for path in placed)


def save_and_keep_one(run: str) -> None:
    save(run, 90, keep=1)


def test_a_new_run_does_not_begin_with_another_ones(theirs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(theirs, tmp_path / "run")
    ((step, said),) = run_ranks(1, resume, str(run))
    assert step is None
    assert len(said) == 2


def test_checkpoints_without_an_owner_are_accepted(run: str) -> None:
    for path in Path(run).glob(f"step-*/{OWNER}"):
        path.unlink()
    assert run_ranks(1, resume, run) == [(80, [])]


def rewritten(path: Path, step: int, **changes: object) -> Path:
    """A checkpoint with changes in its manifest, in a folder of the name for `step`."""
    from tests.orchestrator.checkpoint.test_restore import with_digest

    record = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(with_digest({**record, "step": step, **changes}))
    return path.rename(path.with_name(f"step-{step:09d}-{path.name[-8:]}"))


@pytest.mark.parametrize(
    ("step", "changes", "reason"),
    [
        (100, {}, "it belongs to step 100, and its totals to step 80"),
        (100_000, {"totals": {"steps": 100_000}}, "it belongs to step 100,000, and the run has 120 steps"),
        (80, {"totals": {"steps": 80, "samples": "many"}}, "totals.samples"),
        (80, {"totals": {"steps": 80, "flops": float("inf")}}, "totals.flops"),
        (80, {"totals": {"steps": 80, "flops": -1}}, "totals.flops"),
        (80, {"totals": [80]}, "totals"),
        (80, {"totals": {}}, "its totals have no number of steps"),
        (
            80,
            {"totals": {"steps": 80, "__class__": 1}},
            "its totals have '__class__', which this version does not count",
        ),
        (80, {"metrics": {"train/skipped_steps": float("nan")}}, "train/skipped_steps = nan at step 80"),
        (80, {"metrics": {"train/skipped_in_a_row": float("inf")}}, "train/skipped_in_a_row = inf at step 80"),
        (80, {"metrics": {"train/bad/empty_image": -1}}, "train/bad/empty_image = -1.0 at step 80"),
        (80, {"metrics": {"train/skipped_steps": 81}}, "train/skipped_steps = 81.0 at step 80"),
    ],
)
def test_a_step_that_does_not_fit_its_totals(run: str, step: int, changes: dict[str, object], reason: str) -> None:
    name = rewritten(folder(run, 80), step, **changes).name
    ((found, said),) = run_ranks(1, resume, run)
    assert found == 60
    (line,) = said
    assert line.startswith(f"checkpoint {name}: ")
    assert MANIFEST in line
    assert reason in line
    assert "\n" not in line


HARMS: list[Callable[[Path], object]] = [
    lambda path: path.mkdir(),
    lambda path: path.symlink_to("/proc/self/mem"),  # reading it is an error of the disk
    lambda path: path.symlink_to(path.name),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\xff\xfe\x00{"),
    lambda path: path.write_text("[1, 2]"),
    lambda path: path.write_text("1" * 5000),
    lambda path: path.write_text('{"run": ["x"], "written": 1e999}'),
    lambda path: path.write_text("[" * 200_000),
]


def test_what_cannot_be_read_is_passed_over_and_named(run: str) -> None:
    assert run_ranks(1, reads_what_is_harmed, run) == [[]]


def reads_what_is_harmed(run: str) -> list[str]:
    """Harm each file of the newest checkpoint in each way. Returns what went otherwise than it should."""
    saving.be_impatient()
    problems = []
    for name in (MANIFEST, OWNER, shard(run, 80)):
        path = folder(run, 80) / name
        intact = path.read_bytes()
        for number, harm in enumerate(HARMS):
            path.unlink()
            harm(path)
            step, said = resume(run)
            if step != 60 or len(said) != 1 or name not in said[0] or "\n" in said[0] or len(said[0]) > 300:
                problems.append(f"{name}, harm {number}: step {step}, {said}")
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
            path.write_bytes(intact)
            (folder(run, 80) / MARK).unlink()
    return problems


# ------------------------------------------------------------------------------------------------------- links


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [20, 100])
def test_a_linked_folder_is_neither_emptied_nor_marked(run: str, theirs: Path, step: int) -> None:
    """Older or newer than ours; of another run, or without an owner."""
    outside = folder(str(theirs), step)
    before = contents(outside)
    link = Path(run) / outside.name
    link.symlink_to(outside)
    assert [found for found, _ in run_ranks(1, resume, run)] == [80]
    run_ranks(1, save_and_keep_one, run)
    assert contents(outside) == before
    assert link.is_symlink()
    for _ in range(2):
        prune(run, 1)  # without knowing the run
    assert contents(outside) == before


def test_links_to_what_is_no_checkpoint(run: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "rank-00000").mkdir(parents=True)
    (outside / "rank-00000" / "precious").write_bytes(b"x")
    (outside / "precious").write_bytes(b"x")
    before = contents(outside)
    shutil.rmtree(Path(run) / ".staging")
    (Path(run) / ".staging").symlink_to(outside)
    (Path(run) / "step-000000010-00000000").symlink_to(outside)
    (Path(run) / "step-000000011-00000000").symlink_to(tmp_path / "absent")
    (Path(run) / "step-000000012-00000000").write_bytes(b"a file")
    (folder(run, 60) / "inner").symlink_to(outside)
    (folder(run, 40) / "precious").symlink_to(outside / "precious")
    run_ranks(1, save_and_keep_one, run)
    assert contents(outside) == before
    assert steps_in(run) == [90]
