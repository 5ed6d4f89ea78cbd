"""Classes of the sets of a job, compared before a run. Only indexes are read, so they have no shards."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from data.shards.index import write_index
from orchestrator import JobError, load_job
from orchestrator.checkpoint import manifest
from orchestrator.job.kinds import NetworkJob
from orchestrator.kinds.one_run import own, prepare
from orchestrator.run import folder
from orchestrator.run.inputs import open_inputs
from orchestrator.run.lock.lock import RunLock
from orchestrator.run.paths import absolute
from tests.data.shards.test_index import small_index
from tests.paths import ROOT

DIGITS = ROOT / "jobs/pretrain_digits.yaml"
TEN = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay"]
NUMBERS = [str(number) for number in range(10)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIT_HOME", raising=False)


def write(name: str, names: Sequence[str] = (), num_classes: int = 0, **changes: object) -> None:
    """The index of a set."""
    index = small_index(
        str(Path(name, "index.json").absolute()),
        num_classes=num_classes or len(names),
        class_names=tuple(names),
        multi_label=False,
        **changes,
    )
    write_index(index)


def job_of(*overrides: str) -> NetworkJob:
    sets = ["data.pack=null", "data.train.url=train", "data.eval.test.url=test", "checkpoint.url=runs", "batch_size=2"]
    lengths = ["schedule.length.epochs=1", "schedule.warmup=null", "model.num_classes=20"]
    job = load_job(DIGITS, [*sets, *lengths, *overrides])
    assert isinstance(job, NetworkJob)
    return job


def error_of(*overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        open_inputs(job_of(*overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{DIGITS}: ").removesuffix(" (from --set)")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (TEN, TEN),
        ((), ()),
        (NUMBERS, ()),
        (TEN, ()),
        (TEN, NUMBERS),
        (NUMBERS, [f"{number:03d}" for number in range(10)]),
        (["2019", "2020"], ["02019", "2020"]),
        (["a\n", "\udcff"], ["a\n", "\udcff"]),
    ],
)
def test_equal_classes(train: Sequence[str], test: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, names in (("train", train), ("test", test)):
        write(name, names, num_classes=len(names) or 10)
    open_inputs(job_of())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (TEN, [*TEN[:4], *TEN[5:]], "class 4 is fox, and emu in"),
        (TEN, TEN[:9], "has 9 classes, and class 9 is jay in"),
        (TEN, [*TEN, "k\n"], r'class 10 is "k\n", and there are 10 classes in'),
        (NUMBERS, NUMBERS[:9], "has 9 classes, and there are 10 in"),
        (TEN, NUMBERS[:9], "has 9 classes, and there are 10 in"),
        (
            sorted(["10", *NUMBERS]),
            [*NUMBERS, "10"],
            "class 2 is 2, and 10 in",
        ),  # an earlier version sorted them as text
        (["2019", "2020"], ["2020", "2021"], "class 0 is 2020, and 2019 in"),
    ],
)
def test_other_classes(train: Sequence[str], test: Sequence[str], words: str) -> None:
    write("train", train)
    write("test", test)
    assert error_of() == (
        f"data.eval.test.url = test: {words} data.train.url = train; pack it with --classes train, "
        "or say data.eval.test.check_classes: false if the difference is meant"
    )
    open_inputs(job_of("data.eval.test.check_classes=false"))


def test_names_of_an_older_set_are_in_classes_txt() -> None:
    write("train", TEN)
    write("test", num_classes=10)
    Path("test/classes.txt").write_text("".join(f"{name}\n" for name in reversed(TEN)))
    assert "class 0 is jay, and ant in" in error_of()
    Path("test/classes.txt").write_text("".join(f"{name}\n" for name in TEN))
    open_inputs(job_of())
    Path("test/classes.txt").unlink()
    Path("test/classes.txt").mkdir()  # it cannot be read: then there are no names
    open_inputs(job_of())


def test_all_sets_are_compared() -> None:
    """Also two of which neither is the first, and sources."""
    write("a", num_classes=10)
    write("b", TEN)
    write("c", TEN[::-1])
    sources = ["data.train.url=null", "data.train.sources.a={url: a}", "data.train.sources.b={url: b}"]
    assert error_of(*sources, "data.eval.test.url=c").startswith("data.eval.test.url = c: class 0 is jay, and ant in")
    inputs = open_inputs(job_of(*sources, "data.eval=null"))
    assert list(inputs.train.index.class_names) == TEN
    line = error_of(*sources, "data.train.sources.c={url: c}", "data.eval=null")
    assert line.startswith("data.train.sources.c.url = c: class 0 is jay, and ant in data.train.sources.b.url")
    assert line.endswith("; pack it with --classes b")


def test_stray_labels_are_no_classes() -> None:
    """They are masked: classes beyond the network's do not count."""
    write("train", num_classes=10)
    write("test", num_classes=41, label_counts={0: 100, 40: 1})
    open_inputs(job_of("model.num_classes=10"))
    assert error_of("model.num_classes=50").startswith("data.eval.test.url = test: has 41 classes")


def test_a_run_with_checkpoints_is_warned(capsys: pytest.CaptureFixture[str]) -> None:
    write("train", TEN)
    write("test", TEN[1:])
    run = Path(folder.run_url(absolute(job_of())))
    (run / "step-000000001-00000000").mkdir(parents=True)
    assert folder.MANIFEST == manifest.MANIFEST
    assert "class 0 is bee" in error_of()
    (run / "step-000000001-00000000" / folder.MANIFEST).write_text("{}")
    open_inputs(job_of())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {DIGITS}: data.eval.test.url = test: class 0 is bee")


def test_labels_that_may_count_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    write("train", num_classes=3, label_counts={1: 60, 2: 71})
    write("test", num_classes=3, label_counts={0: 60, 2: 71})
    open_inputs(job_of())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {DIGITS}: data.train.url = train: the labels are 1 to 2, and 0 never occurs")


def test_the_run_keeps_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those it began with. A run of an earlier version gets them when it continues."""

    def start() -> str:
        job, inputs = prepare(job_of("data.eval=null"))
        lock = RunLock(folder.run_url(job), "no cluster", say=print, on_loss=lambda: None)
        with ExitStack() as owned:
            return own(job, inputs, lock, owned)

    odd = [*TEN[:9], "line\nbreak, \udcff"]
    write("train", num_classes=10)
    run_id = start()
    run = Path(folder.run_url(prepare(job_of("data.eval=null"))[0]))
    kept = run / "classes.json"
    assert not kept.exists()
    write("train", odd)
    assert start() == run_id
    assert json.loads(kept.read_text()) == odd
    assert capsys.readouterr().err == ""
    write("train", TEN)
    start()
    assert json.loads(kept.read_text()) == odd
    assert "data.train has other class names than the run began with" in capsys.readouterr().err
    kept.write_text("[")
    with pytest.raises(JobError, match=r"classes.json is damaged"):
        start()
