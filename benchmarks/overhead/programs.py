"""The two compared programs: only the engine of a run, and the whole job."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps that are not timed
NAME = "overhead"  # of the run
LR = 1e-3
SEED = 0
AUGMENT: dict[str, Any] = {"crop": "inception", "flip": True}


def bare_steps(options: argparse.Namespace) -> None:
    """Trains repeatedly on the job's first epoch, decoded beforehand, and prints when each step ended.

    It prints WARM_UP + --steps lines, in seconds since the epoch. Images and learning rate are those of the job,
    because steps on a single memorised batch are some percent faster. On a GPU, only the last time stamp of the warm-up
    and the last one of all wait for the device, so that the host can run ahead in between.
    """
    import itertools

    import torch
    import torch.distributed as dist

    import model
    from benchmarks.shared.alone import join_alone
    from data import Augment, Loader, SampleOrder, open_index
    from model.objectives import dense_targets, softmax_cross_entropy
    from orchestrator.engine.cpu import set_cpu_threads
    from orchestrator.engine.step import Engine
    from orchestrator.job.choices import AdamW
    from orchestrator.job.sections import Parallel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        set_cpu_threads(options.threads)
    join_alone(device)
    vit = model.create_model(options.model, num_classes=1000, image_size=options.image_size)
    model.checkpoint_blocks(vit, options.checkpointing)
    engine = Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 1000)),
        model.decay_mask(vit),
        optimizer=AdamW(name="adamw", lr=LR, weight_decay=0.1),
        parallel=Parallel(zero_stage=options.zero_stage, precision=options.precision),
        micro_batch=options.batch,
        local_batch=options.batch,
        device=device,
    )
    index = open_index(options.bare)
    order = SampleOrder(index, batch_size=options.batch, seed=SEED)
    with Loader(
        index,
        order,
        rank=0,
        world_size=1,
        image_size=options.image_size,
        augment=Augment(**AUGMENT),
        seed=SEED,
        stop_step=order.steps_per_epoch,
    ) as batches:
        decoded = itertools.cycle(list(batches))
    for step in range(1, WARM_UP + options.steps + 1):
        batch = next(decoded)
        engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, None, lr=LR)
        if device.type == "cuda" and step in (WARM_UP, WARM_UP + options.steps):
            torch.cuda.synchronize(device)
        print(time.time(), flush=True)
    dist.destroy_process_group()


def job_command(options: argparse.Namespace, shards: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", str(_write_job(options, shards, folder))]


def database(folder: Path) -> str:
    """Address of MLflow's database of the job in `folder`."""
    return f"sqlite:///{folder}/mlflow.db"


def _write_job(options: argparse.Namespace, shards: Path, folder: Path) -> Path:
    """Writes the job file. Its set has a whole number of batches per epoch, so that all batches are full."""
    import torch
    import yaml

    cuda = torch.cuda.is_available()
    job: dict[str, Any] = {
        "kind": "pretrain",
        "name": NAME,
        "seed": SEED,
        "model": {"name": options.model, "image_size": options.image_size, "num_classes": 1000},
        "data": {
            "train": {"url": str(shards), "augment": AUGMENT},
            "workers": max(1, (os.cpu_count() or 1) - (0 if cuda else options.threads)),
        },
        "objective": {"loss": "softmax"},
        "optimizer": {"name": "adamw", "lr": LR, "weight_decay": 0.1},
        "schedule": {"length": {"steps": WARM_UP + options.steps}, "decay": "linear"},
        "batch_size": options.batch,
        "parallel": {
            "zero_stage": options.zero_stage,
            "precision": options.precision,
            "activation_checkpointing": options.checkpointing,
            "micro_batch": options.batch,
        },
        "cluster": {"workers": 1, "resources_per_worker": {"CPU": options.threads, **({"GPU": 1} if cuda else {})}},
        "checkpoint": {"url": str(folder), "every": {"steps": options.save}},
        "evaluate": {"every": {"steps": WARM_UP + options.steps}},
        "tracking": {"uri": database(folder), "every": {"steps": options.track}},
    }
    path = folder / "overhead.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path
