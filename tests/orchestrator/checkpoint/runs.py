"""The folder of a run with real checkpoints, made without Ray."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

import model
from infra.local.ranks import run_ranks
from orchestrator.checkpoint.files import Piece, write_file
from orchestrator.checkpoint.manifest import MANIFEST, Manifest
from tests.orchestrator.small_run import train_digits

MODEL = {
    "name": "ViT-Ti/16",
    "num_classes": 10,
    "image_size": 8,
    "patch_size": 2,
    "depth": 3,
    "width": 48,
    "heads": 3,
    "mlp_dim": 96,
    "dropout": 0.1,
}
IDENTITY = "0123456789abcdef0123456789abcdef"


def make_run(folder: Path, shards: str, stage: int, workers: int, steps: int, resume: Path | None = None) -> Path:
    """Train the small network of `small_run` on so many workers, and write the files of a run beside its checkpoint."""
    run_ranks(workers, _train, shards, stage, steps, str(folder), None if resume is None else str(resume))
    describe(folder)
    return folder


def _train(shards: str, stage: int, steps: int, save: str, resume: str | None) -> None:
    train_digits(shards, stage, steps, save, resume)


def describe(folder: Path, **more: Any) -> None:
    """Write job.yaml, run.json and classes.json as `run/folder.py` does; `more` are further sections of the job."""
    job = {
        "kind": "pretrain",
        "name": folder.name,
        "model": MODEL,
        "data": {"eval": {"test": {"url": "U", "augment": {"crop": "resize"}}}},
        **more,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"id": IDENTITY, "train": "d" * 64, "code": {"digest": "c" * 64}}))
    (folder / "classes.json").write_text(json.dumps([f"digit {n}" for n in range(10)]))


def write_run(folder: Path, step: int = 1, **more: Any) -> model.VisionTransformer:
    """A run with one checkpoint of a new network with two optimizer states, in one file, which takes no training.

    Args:
        more: sections of its job.
    """
    network = model.create_model(**(more.get("model") or MODEL))
    torch.nn.init.normal_(network.head.weight)
    file = "rank-00000-of-00001.000.safetensors"
    there = folder / f"step-{step:09d}-00000000"
    there.mkdir(parents=True)
    named = {name: p.detach().view(-1) for name, p in network.named_parameters()}
    pieces = [Piece(s, name, 0, p) for name, p in named.items() for s in ("weight", "exp_avg", "exp_avg_sq")]
    manifest = Manifest(
        parameters={name: p.numel() for name, p in named.items()},
        files={file: write_file(there / file, pieces)},
        fragments=[(p.state, p.name, 0, p.values.numel(), file) for p in pieces],
        step=step,
        world_size=1,
        totals={"steps": step},
        metrics={},
    )
    (there / MANIFEST).write_text(manifest.dumps())
    describe(folder, **more)
    return network
