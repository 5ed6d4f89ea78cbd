"""The job files that come with the project, against the paper's tables as typed here."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator import load_job
from orchestrator.job.choices import AdamW
from orchestrator.job.kinds import PretrainJob

JOBS = sorted(Path("jobs").glob("*.yaml"))


class Recipe(NamedTuple):
    """A row of ViT paper, Table 3, with the data set's classes and the width of Table 1."""

    model: str
    width: int
    classes: int
    epochs: int
    lr: float
    decay: str
    weight_decay: float
    dropout: float


RECIPES = {
    "pretrain_b16": Recipe("ViT-B/16", 768, 18_291, 7, 8e-4, "linear", 0.1, 0.0),
    "pretrain_l16": Recipe("ViT-L/16", 1024, 18_291, 14, 4e-4, "linear", 0.1, 0.0),
    "pretrain_h14": Recipe("ViT-H/14", 1280, 18_291, 14, 3e-4, "linear", 0.1, 0.0),
    "pretrain_b16_imagenet21k": Recipe("ViT-B/16", 768, 21_843, 90, 1e-3, "linear", 0.03, 0.1),
    "pretrain_l16_imagenet21k": Recipe("ViT-L/16", 1024, 21_843, 90, 1e-3, "linear", 0.03, 0.1),
    "pretrain_b16_imagenet": Recipe("ViT-B/16", 768, 1000, 300, 3e-3, "cosine", 0.3, 0.1),
    "pretrain_l16_imagenet": Recipe("ViT-L/16", 1024, 1000, 300, 3e-3, "cosine", 0.3, 0.1),
}


def load(path: Path) -> PretrainJob:
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    return job


def test_every_pre_training_file_is_a_recipe_or_the_small_run() -> None:
    assert {path.stem for path in JOBS if path.stem.startswith("pretrain_")} == {*RECIPES, "pretrain_digits"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_file_is_executable_and_tells_editors_its_schema(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env -S python -m orchestrator run"
    assert second == "# yaml-language-server: $schema=schema.json"
    assert os.access(path, os.X_OK)
    assert load_job(path).name == path.stem


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_papers(name: str) -> None:
    job, recipe = load(Path(f"jobs/{name}.yaml")), RECIPES[name]
    assert job.model.name == recipe.model
    assert job.model.image_size == 224
    assert job.model.num_classes == recipe.classes
    assert job.model.representation_size == recipe.width == job.model.vit_config().width
    assert job.model.dropout == recipe.dropout
    assert job.schedule.length.as_dict() == {"epochs": recipe.epochs}
    assert job.schedule.decay == recipe.decay
    assert job.schedule.end_lr == (1e-5 if recipe.decay == "linear" else 0)
    # the same for all rows: batch, warm-up, Adam, clipping
    assert job.batch_size == 4096
    assert job.schedule.warmup is not None
    assert job.schedule.warmup.as_dict() == {"steps": 10_000}
    assert isinstance(job.optimizer, AdamW)
    assert job.optimizer.lr == recipe.lr
    assert job.optimizer.weight_decay == recipe.weight_decay
    assert job.optimizer.betas == (0.9, 0.999)
    assert job.optimizer.grad_clip == 1.0
    # the authors' code: sigmoid loss from a head bias of -10, Inception crop of 5 to 100 % and a flip
    assert (job.objective.loss, job.objective.label_smoothing, job.model.head_bias) == ("sigmoid", 0, -10)
    augment = job.data.train.augment
    assert (augment.crop, augment.min_area, augment.flip) == ("inception", 0.05, True)


@pytest.mark.parametrize("name", RECIPES)
def test_workers_share_the_batch_evenly(name: str) -> None:
    job = load(Path(f"jobs/{name}.yaml"))
    assert job.batch_size % job.cluster.max_workers == 0
    assert job.cluster.resources_per_worker["GPU"] == 1


def test_the_small_run_is_two_plain_cpu_workers_on_bundled_images() -> None:
    job = load(Path("jobs/pretrain_digits.yaml"))
    assert (job.data.pack.source, job.data.pack.to) == ("digits", "runs/data/digits")
    assert (job.cluster.workers, job.parallel.zero_stage, job.parallel.precision) == (2, 1, "float32")
    assert "GPU" not in job.cluster.resources_per_worker
    assert not job.data.train.augment.flip, "a digit is not its mirror image"
    assert job.model.vit_config().grid == 4
