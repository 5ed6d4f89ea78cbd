"""The one line that says what is wrong with a job."""

from pathlib import Path

import pytest

from orchestrator import JobError
from tests.orchestrator.job.job_files import VALID, line_of, load_text


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
        ("model.heads=5", "model.heads = 5: 5 heads do not divide the width 192"),
        (
            "model.image_size=225",
            "model.image_size = 225: 225 is not a multiple of the patch size 16 (nearest: 224 or 240)",
        ),
        ("model.name=ViT-HH/14", "model.name = ViT-HH/14: unknown model 'ViT-HH/14'; the nearest is ViT-H/14"),
        (
            "model.name=vit_base_patch16_224",
            "model.name = vit_base_patch16_224: unknown model 'vit_base_patch16_224', as timm and Hugging Face call "
            "ViT-B/16; use ViT-B/16",
        ),
        ("cluster.workers=65", "batch_size = 64: smaller than the 65 workers of cluster.workers"),
        ("cluster.workers=[1, 65]", "batch_size = 64: smaller than the 65 workers of cluster.workers"),
        ("cluster.workers=[4, 2]", "cluster.workers = [4, 2]: the first number must not exceed the second; use [2, 4]"),
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
            "data.eval.val.augment.crop = inception: expected resize, center or resize_center",
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
    assert line_of(VALID, change) == f"job.yaml: {line}{'' if line.startswith('--set') else ' (from --set)'}"


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


def test_a_key_of_another_kind_of_job_says_so() -> None:
    assert line_of(VALID.replace(", num_classes: 10", ""), "kind=masked_patch") == (
        "job.yaml: objective: only for kind = pretrain, finetune, evaluate or vtab, and it is masked_patch (from --set)"
    )


def test_long_values_are_cut_to_stay_readable() -> None:
    line = line_of(VALID, f"batch_size={'x' * 500}")
    assert line == f"job.yaml: batch_size = {'x' * 117}...: expected an integer >= 1 (from --set)"


def lines_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load_text(text, *overrides)
    lines = str(caught.value).split("\n")
    assert all(line.startswith("job.yaml: ") for line in lines)
    return [line.removeprefix("job.yaml: ") for line in lines]


def test_all_mistakes_of_a_file_are_said_at_once() -> None:
    """Unknown keys, wrong types, missing keys, and values that cannot work beside others: in every section."""
    text = """\
kind: pretrain
sead: 1
model: {name: ViT-Ti/16, image_size: 225, num_classes: 0, width: 100, dropout: 2}
data:
  train: {url: a, block: -1, lanes: 65, augment: {crop: resize, flip: 1, min_area: 0.5}}
  eval: {val: {url: b, augment: {crop: resize, resize: 300}, positive: 7}}
objective: {loss: hinge}
optimizer: {name: adamw, lr: -1, momentum: 0.9}
schedule: {length: {epochs: 1}, warmup: {epochs: 2}, decay: cosin, end_lr: 1}
batch_size: 64
cluster: {workers: [70, 3], max_failures: -7, resources_per_worker: {gpu: 1, TPU: 1}}
profile: {steps: [9, 3], stops: 1}
"""
    assert sorted(lines_of(text)) == sorted(
        [
            "sead: unknown key; did you mean seed?",
            "model.image_size = 225: 225 is not a multiple of the patch size 16 (nearest: 224 or 240)",
            "model.num_classes = 0: expected an integer >= 1",
            "model.heads: 3 heads do not divide the width 100",
            "model.dropout = 2: expected a number >= 0 and < 1",
            "data.train.block = -1: expected an integer >= 1",
            "data.train.lanes = 65: more than batch_size = 64",
            "data.train.augment.flip = 1: expected true or false",
            "data.train.augment.min_area = 0.5: only for crop = inception, and it is resize",
            "data.eval.val.augment.resize = 300: only for crop = center or resize_center, and it is resize",
            "data.eval.val.positive = 7: expected a number >= 0 and < 1",
            "objective.loss = hinge: expected sigmoid or softmax",
            "optimizer.lr = -1: expected a number > 0",
            "optimizer.weight_decay: missing; expected a number >= 0",
            "optimizer.momentum: only for optimizer.name = sgd, and it is adamw",
            "schedule.warmup = {epochs: 2}: longer than the run of 1 epochs",
            "schedule.decay = cosin: expected linear or cosine; did you mean cosine?",
            "cluster.workers = [70, 3]: the first number must not exceed the second; use [3, 70]",
            "cluster.max_failures = -7: expected an integer >= -1",
            "cluster.resources_per_worker.gpu = 1: Ray spells it GPU",
            "cluster.resources_per_worker.TPU = 1: DeepSpeed runs on GPUs and CPUs",
            "profile.steps = [9, 3]: the first is not below the last; use [3, 9]",
            "profile.stops: unknown key; did you mean profile.steps?",
        ]
    )


def test_a_value_is_not_compared_with_one_that_is_wrong_itself() -> None:
    """A misspelt or wrong width says nothing about the heads of the network that is meant."""
    for width in ("widht: 100", "width: '100'"):
        lines = lines_of(VALID.replace("image_size: 32", f"image_size: 32, {width}, heads: 10"))
        assert len(lines) == 1, lines
        assert "heads" not in lines[0]


def test_each_mistake_says_whether_it_is_from_set() -> None:
    text = VALID.replace("lr: 1.0e-3", "lr: -1")
    assert lines_of(text, "batch_size=many", "b", "seed=-1", "data.train.lanes=[", "cluster.workers=3") == [
        "--set b: expected KEY=VALUE, such as --set optimizer.lr=3e-4",
        "--set data.train.lanes=[: not YAML: expected the node content, but found '<stream end>'",
        "seed = -1: expected an integer >= 0 and < 4294967296 (from --set)",
        "optimizer.lr = -1: expected a number > 0",
        "batch_size = many: expected an integer >= 1 (from --set)",
    ]
    assert lines_of(VALID, "cluster.workers=65") == [
        "batch_size = 64: smaller than the 65 workers of cluster.workers (from --set)"
    ]


def test_a_credential_is_said_with_the_other_mistakes_and_never_shown() -> None:
    text = VALID.replace("batch_size: 64", "batch_size: [hunter2]\ntracking: {tags: {password: [hunter2]}}")
    lines = lines_of(text, "objective={token: hunter2}", "schedule.length={secret: hunter2}")
    assert any(line.startswith("tracking.tags.password: holds a credential") for line in lines)
    assert any(line.startswith("objective.token: holds a credential") for line in lines)
    assert any(line.startswith("schedule.length.secret: holds a credential") for line in lines)
    assert [line for line in lines if "hunter2" in line] == ["batch_size = [hunter2]: expected an integer >= 1"]
