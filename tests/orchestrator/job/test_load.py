"""Job files: what they hold when they are right, and the errors of files that cannot be read."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

import data.images.augment
from orchestrator import JobError, load_job
from orchestrator.job.choices import SGD, AdamW, HeldOutAugment
from orchestrator.job.data_sections import Augment
from orchestrator.job.kinds import FinetuneJob, PretrainJob, SweepJob
from tests.orchestrator.job.job_files import VALID, line_of, load_pretrain, load_text
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------------------------------- right files


def test_a_job_holds_what_its_file_says_and_defaults_for_the_rest() -> None:
    job = load_pretrain()
    assert (job.kind, job.name, job.source, job.seed) == ("pretrain", "job", "job.yaml", 0)
    assert job.model.vit_config().depth == 12
    assert job.data.eval["val"].url == "digits/val"
    assert isinstance(job.optimizer, AdamW)
    assert (job.optimizer.lr, job.optimizer.betas, job.optimizer.grad_clip) == (1e-3, (0.9, 0.999), 1.0)
    assert job.schedule.length.epochs == 10
    assert str(job.schedule.warmup) == "1 epochs"
    assert (job.cluster.min_workers, job.cluster.max_workers, job.cluster.resources_per_worker) == (1, 1, {"CPU": 1})
    assert (job.checkpoint.url, job.checkpoint.every.steps, job.checkpoint.keep) == ("runs", 1000, 3)
    assert job.tracking.uri == "sqlite:///runs/mlflow.db"


def test_the_name_in_the_file_wins_over_the_name_of_the_file() -> None:
    assert load_text(f"name: my-run\n{VALID}").name == "my-run"


def test_a_resolved_job_is_a_job_file_that_gives_the_same_job() -> None:
    job = load_pretrain("cluster.workers=[2,4]", "optimizer.grad_clip=null", "tracking.tags.team=3")
    again = load_text(yaml.safe_dump(job.model_dump(mode="json")))
    assert again == job


def test_a_job_survives_the_way_to_another_process() -> None:
    job = load_pretrain()
    assert pickle.loads(pickle.dumps(job)) == job
    assert pickle.loads(pickle.dumps(job)).source == "job.yaml"


@pytest.mark.parametrize("spelling", ["3e-4", "3E-4", "0.0003", "3.0e-4", ".3e-3", "+3.e-4"])
def test_every_spelling_of_a_number_is_a_number(spelling: str) -> None:
    assert load_text(VALID.replace("1.0e-3", spelling)).optimizer.lr == pytest.approx(3e-4)


def test_words_that_old_yaml_takes_for_truth_values_are_names_where_names_are_expected() -> None:
    assert set(load_text(VALID.replace("    val:", "    no:")).data.eval) == {"no"}


def test_the_augmentation_is_the_one_that_the_data_plane_knows() -> None:
    known = [get_args(section.model_fields["crop"].annotation) for section in (Augment, HeldOutAugment)]
    assert {crop for crops in known for crop in crops} == set(get_args(data.images.augment.Crop))
    job = load_pretrain()
    assert data.images.augment.Augment(**job.data.train.augment.model_dump()) == data.images.augment.Augment(
        "inception", flip=True
    )
    assert data.images.augment.Augment(**job.data.eval["val"].augment.model_dump()) == data.images.augment.Augment(
        "center"
    )


def test_an_end_of_the_learning_rate_belongs_to_a_linear_decay() -> None:
    assert load_pretrain().schedule.end_lr == 0
    assert load_pretrain("schedule.decay=linear").schedule.end_lr == 1e-5
    assert load_pretrain("schedule.decay=linear", "schedule.end_lr=0").schedule.end_lr == 0


def test_a_fine_tuning_job_with_sgd() -> None:
    job = load_text(
        VALID.replace("kind: pretrain", "kind: finetune").replace("name: adamw", "name: sgd, momentum: 0.8"),
        "model.init_from=runs/x",
        "optimizer.weight_decay=0",
    )
    assert isinstance(job, FinetuneJob)
    assert isinstance(job.optimizer, SGD)
    assert job.optimizer.momentum == 0.8


# ---------------------------------------------------------------------------------------------------------------- --set


def test_set_reads_yaml_values() -> None:
    job = load_pretrain("batch_size=128", "optimizer.betas=[0.9, 0.95]", "parallel.compile=true", "name='12'")
    assert (job.batch_size, job.optimizer.betas, job.parallel.compile, job.name) == (128, (0.9, 0.95), True, "12")


def test_a_value_of_set_is_whole() -> None:
    """In a file, a blank and a number sign begin a comment."""
    for text in ("/data/set #1", "gs://bucket/runs [v2] #3/x", "/data/100% &*?"):
        assert load_pretrain(f"checkpoint.url={text}").checkpoint.url == text
    assert load_pretrain("checkpoint.url='/data/set' # here").checkpoint.url == "/data/set"
    assert load_pretrain("batch_size=128 # more").batch_size == 128


def test_the_last_set_wins_and_a_mapping_does_as_the_words_do() -> None:
    assert load_pretrain("seed=1", "seed=2").seed == 2
    Path("job.yaml").write_text(VALID)
    assert load_job("job.yaml", {"seed": 3, "optimizer.lr": 0.5}).optimizer.lr == 0.5


def test_objects_that_yaml_cannot_hold_are_refused_too() -> None:
    Path("job.yaml").write_text(VALID)
    with pytest.raises(JobError, match=r"^job\.yaml: data\.train\.url = PosixPath\('x'\): expected text or null$"):
        load_job("job.yaml", {"data.train.url": Path("x")})


def test_a_few_steps_to_profile() -> None:
    assert load_pretrain().profile is None
    assert load_pretrain("profile={steps: [10, 15]}").profile.steps == (10, 15)
    assert load_pretrain("profile.steps=[1, 51]").profile.steps == (1, 51)
    assert load_pretrain("profile.steps=[10, 15]", "profile=null").profile is None


def test_a_duration_has_one_unit_so_that_setting_another_replaces_it() -> None:
    schedule = load_pretrain("schedule.length.steps=2", "schedule.warmup=null", "checkpoint.every.epochs=0.5").schedule
    assert schedule.length.as_dict() == {"steps": 2}
    assert schedule.warmup is None
    assert load_pretrain("schedule.warmup={images: 640}").schedule.warmup.as_dict() == {"images": 640}


def test_tags_that_are_called_like_units_do_not_replace_each_other() -> None:
    assert load_pretrain("tracking.tags.steps=a", "tracking.tags.epochs=b").tracking.tags == {
        "steps": "a",
        "epochs": "b",
    }


def test_set_reaches_the_names_of_the_users_own() -> None:
    assert load_pretrain("cluster.resources_per_worker.GPU=0").cluster.resources_per_worker == {"CPU": 1, "GPU": 0}
    assert load_pretrain("cluster.resources_per_worker.accelerator_type:A100=0.001").cluster.resources_per_worker == {
        "CPU": 1,
        "accelerator_type:A100": 0.001,
    }
    assert load_pretrain("tracking.tags.a.b=c").tracking.tags == {"a.b": "c"}
    held_out = load_pretrain("data.eval.test.url=x", "data.eval.val=null").data.eval
    assert {name: held_out[name].url for name in held_out} == {"test": "x"}
    assert load_pretrain("data.eval=null").data.eval == {}


def test_set_changes_one_of_two_places_that_share_an_alias() -> None:
    shared = f"{VALID}checkpoint: {{every: &often {{steps: 7}}}}\nevaluate: {{every: *often}}\n"
    job = load_text(shared, "evaluate.every.steps=9")
    assert isinstance(job, PretrainJob)
    assert (job.checkpoint.every.steps, job.evaluate.every.steps) == (7, 9)


# ---------------------------------------------------------------------------------------------------------- wrong files


def test_files_that_are_not_there_or_are_no_files() -> None:
    with pytest.raises(JobError, match=r"^absent\.yaml: no such file$"):
        load_job("absent.yaml")
    Path("folder.yaml").mkdir()
    with pytest.raises(JobError, match=r"^folder\.yaml: cannot be read: Is a directory$"):
        load_job("folder.yaml")
    Path("latin.yaml").write_bytes("kind: é".encode("latin-1"))
    with pytest.raises(JobError, match=r"^latin\.yaml: cannot be read: .*utf-8"):
        load_job("latin.yaml")


# --------------------------------------------------------------------------------------------------------- other kinds


def test_masked_patch_prediction_needs_no_labels_and_no_objective() -> None:
    job = load_text(
        VALID.replace(", num_classes: 10", "").replace("objective: {loss: softmax}\n", ""), "kind=masked_patch"
    )
    assert job.kind == "masked_patch"


def test_an_evaluation_reads_held_out_sets_only() -> None:
    job = load_text("""\
kind: evaluate
model: {init_from: runs/x}
data: {eval: {val: {url: v}}}
batch_size: 8
""")
    assert job.kind == "evaluate"


def test_a_vtab_job_is_a_fine_tuning_recipe() -> None:
    job = load_text("""\
kind: vtab
model: {name: H/14, init_from: runs/x}
data: {train: {url: vtab, augment: {crop: resize_crop, resize: 448}}}
objective: {loss: softmax}
optimizer: {name: sgd, lr: 0.01, weight_decay: 0}
schedule: {length: {steps: 2500}, warmup: {steps: 500}, decay: cosine}
batch_size: 512
""")
    assert job.kind == "vtab"


def test_a_sweep_is_checked_down_to_every_value_of_its_grid() -> None:
    Path("base.yaml").write_text(VALID)
    sweep = "kind: sweep\nbase: base.yaml\ngrid: {optimizer.lr: [1e-3, 3e-3], schedule.length.steps: [500]}\n"
    job = load_text(sweep, "grid.schedule.warmup=[null]")
    assert isinstance(job, SweepJob)
    assert job.grid == {"optimizer.lr": [1e-3, 3e-3], "schedule.length.steps": [500], "schedule.warmup": [None]}

    assert line_of(sweep.replace("3e-3", "-3e-3")) == (
        "job.yaml: base.yaml: optimizer.lr = -0.003: expected a number > 0"
    )
    assert line_of(sweep.replace("optimizer.lr", "lr")) == (
        "job.yaml: base.yaml: lr: unknown key; did you mean optimizer.lr?"
    )
    with pytest.raises(JobError) as both:
        load_text(sweep.replace("3e-3", "-3e-3").replace("500", "0"))
    assert both.value.lines == (
        "job.yaml: base.yaml: optimizer.lr = -0.003: expected a number > 0",
        "job.yaml: base.yaml: schedule.length.steps = 0: expected an integer >= 1 or null",
    )
    assert line_of(sweep.replace("[500]", "[]")) == (
        "job.yaml: grid.schedule.length.steps = []: expected a list of anything"
    )
    assert line_of(sweep.replace("base.yaml", "absent.yaml")) == "job.yaml: absent.yaml: no such file"
    assert line_of(sweep.replace("base.yaml", "job.yaml")) == "job.yaml: base = job.yaml: is itself a sweep"


# --------------------------------------------------------------------------------------------------------------- speed


def test_a_mistake_is_answered_without_loading_an_engine() -> None:
    """torch, Ray, DeepSpeed and MLflow take seconds to import each; refusing a job file needs none of them."""
    Path("job.yaml").write_text(VALID + "lr: 3\n")
    script = """
import sys
from orchestrator import JobError, load_job
try:
    load_job("job.yaml")
except JobError as error:
    print(error)
print(sorted({"torch", "ray", "deepspeed", "mlflow", "cv2"} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert run.stdout.splitlines() == ["job.yaml: lr: unknown key; did you mean optimizer.lr?", "[]"]
