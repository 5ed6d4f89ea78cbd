"""What is compared: the engine of a run with nothing around it, and the whole job."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps that are not timed
NAME = "overhead"  # of the run


def bare_steps(options: argparse.Namespace) -> None:
    """Train on one batch, and print when each step ended, in seconds since the epoch: WARM_UP + --steps lines.

    On a GPU only the last stamp of the warm-up and the very last one wait for it, so that the host runs ahead between.
    """
    import torch
    import torch.distributed as dist

    import model
    from benchmarks.step_ours import join_alone
    from model.objectives import dense_targets, softmax_cross_entropy
    from orchestrator.engine import Engine
    from orchestrator.job_sections import AdamW, Parallel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    join_alone(device)
    vit = model.create_model(options.model, num_classes=1000, image_size=options.image_size)
    model.checkpoint_blocks(vit, options.checkpointing)
    engine = Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 1000)),
        model.decay_mask(vit),
        optimizer=AdamW(name="adamw", lr=1e-3, weight_decay=0.1),
        parallel=Parallel(zero_stage=options.zero_stage, precision=options.precision),
        micro_batch=options.batch,
        local_batch=options.batch,
        device=device,
    )
    size = (options.batch, 3, options.image_size, options.image_size)
    batch = (
        torch.randint(256, size, dtype=torch.uint8),
        torch.randint(1000, (options.batch, 1)),
        torch.ones(options.batch, 1),
        torch.ones(options.batch, dtype=torch.bool),
    )
    for step in range(1, WARM_UP + options.steps + 1):
        engine.train_step(*batch, None, lr=1e-4)
        if device.type == "cuda" and step in (WARM_UP, WARM_UP + options.steps):
            torch.cuda.synchronize(device)
        print(time.time(), flush=True)
    dist.destroy_process_group()


def job_command(options: argparse.Namespace, shards: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", str(_write_job(options, shards, folder))]


def database(folder: Path) -> str:
    """MLflow's, of the job in `folder`."""
    return f"sqlite:///{folder}/mlflow.db"


def _write_job(options: argparse.Namespace, shards: Path, folder: Path) -> Path:
    """The job file. Whole steps of every epoch, so that both train full batches only."""
    import torch
    import yaml

    cuda = torch.cuda.is_available()
    job: dict[str, Any] = {
        "kind": "pretrain",
        "name": NAME,
        "model": {"name": options.model, "image_size": options.image_size, "num_classes": 1000},
        "data": {
            "train": {"url": str(shards), "augment": {"crop": "inception", "flip": True}},
            "workers": max(1, (os.cpu_count() or 1) - (0 if cuda else options.threads)),
        },
        "objective": {"loss": "softmax"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
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
