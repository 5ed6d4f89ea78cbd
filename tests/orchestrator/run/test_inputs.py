"""The checks that open what a job names, on the bundled digits packed for real."""

import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from data import open_index
from data.shards.index import write_index
from data.sources.digits import pack_digits
from orchestrator import JobError, load_job
from orchestrator.job.kinds import NetworkJob
from orchestrator.run.inputs import Inputs, open_inputs
from tests.paths import ROOT

DIGITS = ROOT / "jobs/pretrain_digits.yaml"
IMAGES = len(load_digits().target)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_digits(str(folder))
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIT_HOME", raising=False)


def check(*overrides: str) -> Inputs:
    job = load_job(DIGITS, overrides)
    assert isinstance(job, NetworkJob)
    return open_inputs(job)


def at(folder: Path) -> list[str]:
    return ["data.pack=null", f"data.train.url={folder}/train", f"data.eval.test.url={folder}/test"]


def line_of(*overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        check(*overrides)
    prefix = f"{DIGITS}: "
    assert str(caught.value).startswith(prefix)
    return caught.value.lines[0].removeprefix(prefix).removesuffix(" (from --set)")


def test_the_small_run_packs_its_images_and_knows_its_lengths(tmp_path: Path) -> None:
    inputs = check(
        "schedule.length={epochs: 60}", "schedule.warmup={epochs: 3}", "batch_size=128", "data.train.lanes=1"
    )
    assert inputs.train.index.num_samples + inputs.held_out["test"].num_samples == IMAGES
    assert inputs.calendar.steps_per_epoch == math.ceil(inputs.train.index.num_samples / 128)
    assert inputs.calendar.total_steps == 60 * inputs.calendar.steps_per_epoch
    assert inputs.calendar.warmup_steps == 3 * inputs.calendar.steps_per_epoch
    assert (tmp_path / "runs/data/digits/train/index.json").exists()


def test_a_name_that_is_too_long_is_said_with_its_key(packed: Path, tmp_path: Path) -> None:
    """Bytes count: a letter of most alphabets has two or three."""
    for long, length in (("x" * 256, 256), ("図" * 86, 258)):
        words = f": a name of {length} bytes; a file's name has at most 255"
        for key, value in (
            ("checkpoint.url", f"{tmp_path}/{long}"),
            ("tracking.uri", f"sqlite:///{tmp_path}/{long}.db"),
            ("data.pack", f"{{source: digits, to: {tmp_path}/{long}}}"),
        ):
            line = line_of(f"{key}={value}")
            assert line.startswith(key)
            assert words.removeprefix(f": a name of {length}") in line
    assert line_of("name=" + "x" * 300).startswith("name = ")
    deep = "/".join(["x" * 200] * 4)
    assert line_of(f"checkpoint.url={tmp_path}/{deep}").startswith("checkpoint.url")
    check(*at(packed), "name=" + "x" * 255)


def test_packing_leaves_what_is_there_and_finishes_what_is_not(tmp_path: Path) -> None:
    check()
    train = tmp_path / "runs/data/digits/train"
    before = {path.name: path.stat().st_mtime_ns for path in train.iterdir()}
    shutil.rmtree(tmp_path / "runs/data/digits/test")
    check()
    assert {path.name: path.stat().st_mtime_ns for path in train.iterdir()} == before
    assert (tmp_path / "runs/data/digits/test/index.json").exists()


def test_a_relative_url_is_looked_for_where_the_program_will_look(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_HOME", str(packed))
    inputs = check("data.pack=null", "data.train.url=train", "data.eval.test.url=test", f"checkpoint.url={tmp_path}")
    assert inputs.train.digest == open_index(f"{packed}/train").digest


def test_a_training_set_elsewhere_is_not_packed(tmp_path: Path) -> None:
    assert line_of("data.train.url=elsewhere/train").startswith("data.train.url = elsewhere/train: does not exist")
    assert not (tmp_path / "elsewhere").exists()


def test_data_that_is_not_there(packed: Path, tmp_path: Path) -> None:
    assert line_of("data.pack=null") == (
        f"data.train.url = runs/data/digits/train: does not exist (looked for at {tmp_path}/runs/data/digits/train)"
    )
    assert line_of(*at(packed), "data.eval.second.url=/no/where", "data.eval.second.augment.crop=center") == (
        "data.eval.second.url = /no/where: does not exist"
    )


def test_shards_without_an_index(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    line = line_of(*at(packed), f"data.train.url={tmp_path}/shards")
    assert line.startswith(f"data.train.url = {tmp_path}/shards: no index.json there; ")
    assert "python -m data pack --index-only" in line


def test_more_classes_than_the_head_has(packed: Path) -> None:
    assert line_of(*at(packed), "model.num_classes=9") == (
        f"model.num_classes = 9: fewer than the 10 classes of data.train.url = {packed}/train"
    )


def test_a_head_with_classes_to_spare_is_fine(packed: Path) -> None:
    assert check(*at(packed), "model.num_classes=11").train.index.num_classes == 10


def test_a_warm_up_longer_than_the_run_in_another_unit(packed: Path) -> None:
    run = [*at(packed), "batch_size=128", "data.train.lanes=1", "schedule.length={epochs: 1}"]
    steps = math.ceil(open_index(f"{packed}/train").num_samples / 128)
    assert check(*run, f"schedule.warmup.steps={steps}").calendar.warmup_steps == steps
    line = line_of(*run, "schedule.warmup.steps=13")
    assert steps == 12
    assert line == "schedule.warmup = {steps: 13}: 13 steps are longer than the run of 12; null = no warm-up"


def test_steps_to_profile_beyond_the_run(packed: Path) -> None:
    run = (*at(packed), "schedule.length.epochs=1", "schedule.warmup=null", "batch_size=128")
    assert check(*run, "profile.steps=[10, 12]").calendar.total_steps == 12
    assert line_of(*run, "profile.steps=[10, 13]") == "profile.steps = [10, 13]: beyond the run of 12 steps"


def test_where_a_run_cannot_be_written(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert line_of("checkpoint.url=http://x/runs") == (
        "checkpoint.url = http://x/runs: cannot be written over HTTP; use a local path, gs:// or s3://"
    )
    assert line_of("checkpoint.url=gss://x/runs").startswith("checkpoint.url = gss://x/runs: ")
    assert line_of("checkpoint.url=file/runs") == f"checkpoint.url = file/runs: {tmp_path}/file is not a folder"
    assert check(*at(packed), "checkpoint.url=new/deep/folder").train.index.num_samples > 0


def test_placeholders_and_variables_that_nobody_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUCKET", raising=False)
    assert line_of("checkpoint.url=gs://YOUR-BUCKET/runs") == (
        "checkpoint.url = gs://YOUR-BUCKET/runs: put your own bucket in place of YOUR-BUCKET, in the file or with --set"
    )
    assert line_of("data.pack=null", "data.train.url=gs://$BUCKET/train") == (
        "data.train.url = gs://$BUCKET/train: the environment variable BUCKET is not set"
    )


def test_the_big_recipe_runs_on_small_local_shards(packed: Path, tmp_path: Path) -> None:
    job = load_job(
        ROOT / "jobs/pretrain_h14.yaml",
        [
            f"data.train.url={packed}/train",
            "data.eval=null",
            "batch_size=2",
            "schedule.length.steps=2",
            "schedule.warmup=null",
            "cluster.workers=1",
            "cluster.resources_per_worker.GPU=0",
            f"checkpoint.url={tmp_path}",
        ],
    )
    assert isinstance(job, NetworkJob)
    inputs = open_inputs(job)
    assert (inputs.calendar.total_steps, inputs.calendar.warmup_steps, inputs.held_out) == (2, 0, {})


def test_checking_loads_neither_ray_nor_torch(tmp_path: Path) -> None:
    script = """
import sys
import orchestrator.run.inputs
print(sorted({"torch", "ray", "deepspeed", "mlflow", "sklearn"} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert run.stdout.strip() == "[]"


def test_memory_that_cannot_hold_the_images(packed: Path) -> None:
    line = line_of(*at(packed), "data.memory=9MB")
    assert line.startswith("data.memory = 9000000: a worker needs ")
    assert "32 images of data.train a step" in line
    needed = int(line.split(" a worker needs ")[1].split(" bytes")[0].replace(",", ""))
    assert check(*at(packed), f"data.memory={needed}").train.index.num_classes == 10
    assert line_of(*at(packed), f"data.memory={needed - 1}").endswith("data.prefetch")


def test_sources_by_name(packed: Path) -> None:
    two = ["data.train.url=null", f"data.train.sources.a={{url: {packed}/train, weight: 1}}"]
    mixed = check(*at(packed), *two, f"data.train.sources.b={{url: {packed}/test, weight: 1}}")
    assert mixed.train.index.num_samples == IMAGES
    line = line_of(*at(packed), *two, f"data.train.sources.b={{url: {packed}/test, weight: 1, subset: 999}}")
    assert line.startswith("data.train.sources.b.subset = 999: ")
    line = line_of(*at(packed), *two, f"data.train.sources.b={{url: {packed}/test, weight: 0.001}}")
    assert line.startswith("data.train.sources = ")
    assert "source 2 of 2" in line
    assert line_of(*at(packed), *two, "data.train.sources.b={url: /nowhere, weight: 1}").startswith(
        "data.train.sources.b.url = /nowhere: "
    )


def test_a_threshold_for_labels_without_weights(packed: Path) -> None:
    assert line_of(*at(packed), "data.eval.test.positive=0.5") == (
        "data.eval.test.positive = 0.5: its images have one label each, without weights; use 0"
    )
    assert check(*at(packed), "data.eval.test.positive=0").held_out["test"].num_samples
    for text in ("1", "-0.1"):
        assert line_of(*at(packed), f"data.eval.test.positive={text}").startswith(f"data.eval.test.positive = {text}: ")


def test_sets_of_evaluators_are_opened_before_the_run(packed: Path, tmp_path: Path) -> None:
    def few_shot(train: object, test: object) -> list[str]:
        return [*at(packed), f"evaluators.few_shot.sets.a={{train: {train}, test: {test}, augment: {{crop: resize}}}}"]

    train, test = packed / "train", packed / "test"
    assert check(*few_shot(train, test), "model.num_classes=10").held_out["test"].num_samples
    assert line_of(*few_shot(tmp_path / "none", test)) == (
        f"evaluators.few_shot.sets.a.train = {tmp_path}/none: does not exist"
    )
    for name, changes in {"several": {"multi_label": True}, "eleven": {"num_classes": 11}}.items():
        shutil.copytree(test, tmp_path / name)
        write_index(dataclasses.replace(open_index(str(tmp_path / name)), **changes))
    assert line_of(*few_shot(train, tmp_path / "several")) == (
        f"evaluators.few_shot.sets.a.test = {tmp_path}/several: its images have several labels each; one is needed"
    )
    assert line_of(*few_shot(train, tmp_path / "eleven")) == (
        f"evaluators.few_shot.sets.a.test = {tmp_path}/eleven: 11 classes, and evaluators.few_shot.sets.a.train has 10"
    )
    assert check(*few_shot(tmp_path / "eleven", tmp_path / "eleven")), "more than the head has"
    assert line_of(*few_shot(train, test), "evaluators.few_shot.sets.a.augment={crop: center, resize: 4}") == (
        "evaluators.few_shot.sets.a.augment.resize = 4: smaller than model.image_size = 8, which is cut out of it"
    )


def test_a_set_that_is_meant_to_have_no_labels(packed: Path, tmp_path: Path) -> None:
    index = open_index(f"{packed}/train")
    folder = shutil.copytree(packed / "train", tmp_path / "bare")
    bare = {"label_counts": {}, "num_classes": 0, "about": {"label_rule": {"version": 1, "unlabelled": True}}}
    write_index(dataclasses.replace(index, url=f"{folder}/index.json", **bare))
    assert line_of(*at(packed), f"data.train.url={folder}") == (
        f"data.train.url = {folder}: its images have no labels: it was indexed with --unlabelled"
    )


def test_stray_labels_are_left_to_training(packed: Path, tmp_path: Path) -> None:
    """A few labels beyond the classes are bad samples; a class too few is a mistake."""
    index = open_index(f"{packed}/train")
    folder = shutil.copytree(packed / "train", tmp_path / "stray")
    counts = {**index.label_counts, 40: 3}
    write_index(dataclasses.replace(index, url=f"{folder}/index.json", label_counts=counts, num_classes=41))
    assert check(*at(packed), f"data.train.url={folder}").train.index.num_classes == 41
    assert line_of(*at(packed), f"data.train.url={folder}", "data.max_bad_fraction=0.001").startswith(
        "model.num_classes = 10: fewer than the 41 classes"
    )


def test_a_batch_larger_than_the_set(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = open_index(str(packed / "train")).num_samples
    for batch in (10**12, 2 * samples + 2):
        line = line_of(*at(packed), f"batch_size={batch}")
        assert f"batch_size = {batch}: " in line
        assert line.endswith(f"since data.train has {samples:,} samples; use {samples:,} or less")
    assert capsys.readouterr().err == ""
    check(*at(packed), f"batch_size={2 * samples - 2}")
    assert "warning: " in (said := capsys.readouterr().err)
    assert "50% of the training slots would be empty" in said
    check(*at(packed), f"batch_size={samples}")
    assert capsys.readouterr().err == "", "held-out sets may be smaller than a batch"


def test_all_that_is_missing_or_does_not_fit_is_said_at_once(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError) as caught:
        check(
            "data.pack=null",
            "data.train.url=null",
            f"data.train.sources.a={{url: {packed}/train, subset: 5000}}",
            f"data.train.sources.b={{url: {packed}/test, exclude: /no/list}}",
            f"data.eval.test={{url: {packed}/test, augment: {{crop: center}}}}",
            "data.eval.more={url: /no/where, augment: {crop: center}}",
            "data.eval.web={url: gs://YOUR-BUCKET/x, augment: {crop: center}}",
            "data.cache_dir=gs://b/c",
            "checkpoint.url=file/runs",
            "tracking.uri=file:///x",
            "model.num_classes=9",
        )
    keys = [line.removeprefix(f"{DIGITS}: ").split(" = ")[0] for line in caught.value.lines]
    assert sorted(keys) == [
        "checkpoint.url",
        "data.cache_dir",
        "data.eval.more.url",
        "data.eval.web.url",
        *["model.num_classes"] * 3,
        "tracking.uri",
    ]
    with pytest.raises(JobError) as caught:
        check(
            *at(packed)[:1],
            "data.train.url=null",
            f"data.train.sources.a={{url: {packed}/train, subset: 5000}}",
            f"data.train.sources.b={{url: {packed}/test, exclude: /no/list}}",
            f"data.eval.test.url={packed}/test",
            "data.eval.test.positive=0.5",
        )
    assert [line.split(": ")[1].split(" = ")[0] for line in caught.value.lines] == [
        "data.eval.test.positive",
        "data.train.sources.a.subset",
        "data.train.sources.b.exclude",
    ]


def test_nothing_is_packed_while_anything_is_wrong(tmp_path: Path) -> None:
    for wrong in ("data.eval.more={url: /no/where, augment: {crop: center}}", "batch_size=5000", "model.num_classes=9"):
        assert line_of(wrong)
        assert list(tmp_path.iterdir()) == []
