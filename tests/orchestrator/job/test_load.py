"""Job files: what they hold when they are right, and the one line that is said when they are wrong."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import data.images.augment
from orchestrator import JobError, load_job
from orchestrator.job.kinds import FinetuneJob, PretrainJob, SweepJob
from orchestrator.job.sections import SGD, AdamW, Augment
from tests.paths import ROOT

VALID = """\
kind: pretrain
model: {name: ViT-Ti/16, image_size: 32, num_classes: 10}
data:
  train: {url: digits/train}
  eval:
    val: {url: digits/val}
objective: {loss: softmax}
optimizer: {name: adamw, lr: 1.0e-3, weight_decay: 0.1}
schedule: {length: {epochs: 10}, warmup: {epochs: 1}, decay: cosine}
batch_size: 64
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load_text(text: str, *overrides: str) -> Any:
    Path("job.yaml").write_text(text)
    return load_job("job.yaml", overrides)


def load_pretrain(*overrides: str) -> Any:
    job = load_text(VALID, *overrides)
    assert isinstance(job, PretrainJob)
    return job


def line_of(text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load_text(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    assert set(get_args(Augment.model_fields["crop"].annotation)) == set(get_args(data.images.augment.Crop))
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


@pytest.mark.parametrize(
    ("change", "line"),
    [
        # keys that do not exist
        ("model.heds=3", "model.heds: unknown key; did you mean model.heads?"),
        ("lr=3", "lr: unknown key; did you mean optimizer.lr?"),
        ("optimizer.decay=linear", "optimizer.decay: unknown key; did you mean schedule.decay?"),
        ("data.evil.x.url=a", "data.evil: unknown key; did you mean data.eval?"),
        ("data.eval.val.urrl=a", "data.eval.val.urrl: unknown key; did you mean data.eval.val.url?"),
        ("schedule.warmup.epoch=3", "schedule.warmup.epoch: unknown key; did you mean schedule.warmup.epochs?"),
        (
            "every=1",
            "every: unknown key; did you mean checkpoint.every, evaluate.every or tracking.every?",
        ),
        ("objective.zzz=1", "objective.zzz: unknown key; there are loss, label_smoothing"),
        ("optimizer.momentum=0.9", "optimizer.momentum: only for optimizer.name = sgd, and it is adamw"),
        ("grid={seed: [1]}", "grid: only for kind = sweep, and it is pretrain"),
        # values of a wrong type
        ("batch_size=many", "batch_size = many: expected an integer >= 1"),
        ("batch_size='128'", "batch_size = '128': expected an integer >= 1"),
        ("batch_size=true", "batch_size = true: expected an integer >= 1"),
        ("batch_size=64.5", "batch_size = 64.5: expected an integer >= 1"),
        ("optimizer.lr=null", "optimizer.lr = null: expected a number > 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas = [0.9]: expected [a number >= 0 and < 1, a number >= 0 and < 1]"),
        ("parallel.compile=1", "parallel.compile = 1: expected true or false"),
        ("tracking.tags.a=[1]", "tracking.tags.a = [1]: expected text"),
        ("objective=softmax", "objective = softmax: expected a section with loss, label_smoothing"),
        (
            "schedule.length=14",
            "schedule.length = 14: expected a duration such as {steps: 1000}, {epochs: 1.5} or {images: 4096}",
        ),
        # values out of range
        ("optimizer.lr=-1", "optimizer.lr = -1: expected a number > 0"),
        ("optimizer.lr=.nan", "optimizer.lr = .nan: expected a number > 0"),
        ("optimizer.lr=.inf", "optimizer.lr = .inf: expected a number > 0"),
        ("model.dropout=1", "model.dropout = 1: expected a number >= 0 and < 1"),
        ("parallel.zero_stage=4", "parallel.zero_stage = 4: expected an integer >= 0 and <= 3"),
        ("parallel.micro_batch=0", "parallel.micro_batch = 0: expected an integer >= 1 or auto"),
        ("parallel.precision=bf61", "parallel.precision = bf61: expected bf16 or float32; did you mean bf16?"),
        ("optimizer.name=lion", "optimizer.name = lion: expected adamw or sgd"),
        (
            "kind=pretran",
            "kind = pretran: expected pretrain, masked_patch, finetune, evaluate, sweep or vtab; "
            "did you mean pretrain?",
        ),
        ("name=a/b", "name = a/b: expected text matching ^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        ("data.train.url=''", "data.train.url = '': expected text or null"),
        # values that cannot work together
        ("model.heads=5", "model.heads: 5 heads do not divide the width 192"),
        ("model.image_size=225", "model.image_size: 225 is not a multiple of the patch size 16 (nearest: 224 or 240)"),
        ("model.name=ViT-HH/14", "model.name: unknown model 'ViT-HH/14'; the nearest is ViT-H/14"),
        ("cluster.workers=65", "batch_size = 64: smaller than the 65 workers of cluster.workers"),
        ("cluster.workers=[1, 65]", "batch_size = 64: smaller than the 65 workers of cluster.workers"),
        ("cluster.workers=[4, 2]", "cluster.workers = [4, 2]: least above most; use [2, 4]"),
        ("schedule.warmup.epochs=11", "schedule.warmup = {epochs: 11}: longer than the run of 10 epochs"),
        ("schedule.end_lr=1e-5", "schedule.end_lr = 1.0e-05: only for decay = linear; a cosine ends at 0"),
        ("schedule.length={}", "schedule.length = {}: expected exactly one of steps, epochs or images"),
        (
            "schedule.length={epochs: 1, steps: 2}",
            "schedule.length = {epochs: 1, steps: 2}: expected exactly one of steps, epochs or images",
        ),
        ("data.train.lanes=65", "data.train.lanes = 65: more than batch_size = 64"),
        (
            "data.train.augment={crop: resize, min_area: 0.5}",
            "data.train.augment.min_area = 0.5: only for crop = inception, and it is resize",
        ),
        (
            "data.train.augment={crop: resize_crop, resize: 31}",
            "data.train.augment.resize = 31: smaller than model.image_size = 32, which is cut out of it",
        ),
        (
            "data.eval.val.augment={crop: center, resize: 16}",
            "data.eval.val.augment.resize = 16: smaller than model.image_size = 32, which is cut out of it",
        ),
        (
            "data.eval.val.augment={crop: inception}",
            "data.eval.val.augment.crop = inception: expected resize or center",
        ),
        ("profile.steps=[15, 10]", "profile.steps = [15, 10]: the first is not below the last; use [10, 15]"),
        ("profile.steps=[10, 10]", "profile.steps = [10, 10]: the first is not below the last; use [10, 11]"),
        ("profile.steps=[10, 61]", "profile.steps = [10, 61]: more than 50 steps; use [10, 60]"),
        ("profile.steps=[0, 5]", "profile.steps = [0, 5]: expected [an integer >= 1, an integer >= 1]"),
        ("profile.steps=10", "profile.steps = 10: expected [an integer >= 1, an integer >= 1]"),
        ("profile.step=[10, 15]", "profile.step: unknown key; did you mean profile.steps?"),
        ("profile={}", "profile.steps: missing; expected [an integer >= 1, an integer >= 1]"),
        ("kind=finetune", "model.init_from: this kind of job starts from trained weights; give their URL"),
        # --set itself
        ("batch_size", "--set batch_size: expected KEY=VALUE, such as --set optimizer.lr=3e-4"),
        ("a..b=3", "--set a..b=3: expected KEY=VALUE, such as --set optimizer.lr=3e-4"),
        ("seed=[", "--set seed=[: not YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_mistake_is_one_line(change: str, line: str) -> None:
    assert line_of(VALID, change) == f"job.yaml: {line}"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("batch_size: 64\n", "", "job.yaml: batch_size: missing; expected an integer >= 1"),
        ("kind: pretrain\n", "", "job.yaml: kind: expected pretrain, masked_patch, finetune, evaluate, sweep or vtab"),
        ("name: adamw, ", "", "job.yaml: optimizer.name: expected adamw or sgd"),
        ("{url: digits/val}", "{}", "job.yaml: data.eval.val.url: missing; expected text"),
        ("lr: 1.0e-3", "lrr: 1.0e-3", "job.yaml: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("batch_size: 64", "batch_size: 64\nbatch_size: 32", "job.yaml:11: not YAML: duplicate key batch_size"),
        ("{loss: softmax}", "{loss: softmax", "job.yaml:8: not YAML: expected ',' or '}', but got ':'"),
        ("batch_size: 64", "? [a]\n: 1", "job.yaml:10: not YAML: a key must be text"),
        (
            "batch_size: 64",
            "batch_size: 0\nseed: -1\nsead: 1",
            "job.yaml: sead: unknown key; did you mean seed? (and 2 more)",
        ),
        (
            "kind: pretrain",
            "kind: !!python/name:os.system",
            "job.yaml:1: not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'",
        ),
        (VALID, "- kind\n", "job.yaml: expected keys such as kind: pretrain, found [kind]"),
        (VALID, "", "job.yaml: expected keys such as kind: pretrain, found null"),
        (
            "kind: pretrain",
            "kind: \x00",
            "job.yaml: not YAML: unacceptable character #x0000: special characters are not allowed",
        ),
    ],
)
def test_a_broken_file_is_one_line(old: str, new: str, line: str) -> None:
    assert old in VALID
    assert line_of(VALID.replace(old, new)) == line


def test_even_a_key_of_two_lines_is_told_in_one() -> None:
    assert line_of(VALID + '"a\\nb": 1\n').startswith("job.yaml: a b: unknown key; there are kind, name, ")


def test_files_that_are_not_there_or_are_no_files() -> None:
    with pytest.raises(JobError, match=r"^absent\.yaml: no such file$"):
        load_job("absent.yaml")
    Path("folder.yaml").mkdir()
    with pytest.raises(JobError, match=r"^folder\.yaml: cannot be read: Is a directory$"):
        load_job("folder.yaml")
    Path("latin.yaml").write_bytes("kind: é".encode("latin-1"))
    with pytest.raises(JobError, match=r"^latin\.yaml: cannot be read: .*utf-8"):
        load_job("latin.yaml")


def test_a_key_of_another_kind_of_job_says_so() -> None:
    assert line_of(VALID.replace(", num_classes: 10", ""), "kind=masked_patch") == (
        "job.yaml: objective: only for kind = pretrain, finetune, evaluate or vtab, and it is masked_patch"
    )


def test_long_values_are_cut_to_stay_readable() -> None:
    line = line_of(VALID, f"batch_size={'x' * 500}")
    assert line == f"job.yaml: batch_size = {'x' * 117}...: expected an integer >= 1"


# --------------------------------------------------------------------------------------------------------- other kinds


def test_masked_patch_prediction_needs_no_labels_and_no_objective() -> None:
    job = load_text(
        VALID.replace(", num_classes: 10", "").replace("objective: {loss: softmax}\n", ""), "kind=masked_patch"
    )
    assert job.kind == "masked_patch"


def test_an_evaluation_reads_held_out_sets_only() -> None:
    job = load_text("""\
kind: evaluate
model: {name: H/14, num_classes: 10, init_from: runs/x}
data: {eval: {val: {url: v}}}
objective: {loss: softmax}
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
    assert line_of(sweep.replace("[500]", "[]")) == (
        "job.yaml: grid.schedule.length.steps = []: expected a list of anything"
    )
    assert line_of(sweep.replace("base.yaml", "absent.yaml")) == "job.yaml: absent.yaml: no such file"
    assert line_of(sweep.replace("base.yaml", "job.yaml")) == "job.yaml: base = job.yaml: a sweep itself"


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
