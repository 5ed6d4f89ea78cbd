#!/usr/bin/env python
"""What the system costs: the whole job (Ray Train, data, tracking, checkpoints) against the bare training step."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

EPILOG = """
The same model, precision and batch train in turn, so many times each:

bare  one process with nothing but the engine: the same batch of random pixels again and again
job   `python -m orchestrator run` on a Ray of its own, from JPEGs in WebDataset shards, with the curves in MLflow every
      --track steps and a checkpoint every --save steps; timed from a point of its curve to the last one, with
      everything that comes in between, of which evaluation is none

overhead = 1 - bare / job, of the medians of their seconds a step. It is as good as the machine is steady, since minutes
lie between the two. beside_step is the share of the job's own time, by its own clock, in which the engine did not
compute: data, tracking, checkpoints. It is not touched by drift, nor does it see what slows the engine down.

Both compute on the GPU where there is one. On a CPU the job has the other cores for what a machine with a GPU has its
CPUs for, and --threads compute.
"""
WARM_UP = 3  # steps that are not timed
IN_ENGINE = ("forward", "backward", "optimizer")  # phases of a step, of those that a run tracks


def bare_step(options: argparse.Namespace) -> float:
    """Seconds a step of the engine alone, in this process; the mean over --steps."""
    import time

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
    parallel = Parallel(zero_stage=options.zero_stage, precision=options.precision)
    engine = Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 1000)),
        model.decay_mask(vit),
        optimizer=AdamW(name="adamw", lr=1e-3, weight_decay=0.1),
        parallel=parallel,
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
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            began = _now(device, time.monotonic)
        engine.train_step(*batch, None, lr=1e-4)
    seconds = (_now(device, time.monotonic) - began) / options.steps
    dist.destroy_process_group()
    return seconds


def _now(device: Any, clock: Any) -> float:
    """The time when the device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return float(clock())


def job_step(options: argparse.Namespace, shards: Path, folder: Path) -> dict[str, float]:
    """Of a run: seconds a step, what of it the run itself accounts for, seconds of waiting for data and checkpoints."""
    from benchmarks.chaos_report import read_curve

    database = f"sqlite:///{folder}/mlflow.db"
    words = [sys.executable, "-m", "orchestrator", "run", str(write_job(options, shards, folder, database))]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    run = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise RuntimeError(f"the job ended with exit code {run.returncode}: {run.stdout.strip().splitlines()[-1]}")
    curve, _ = read_curve(database, "overhead")
    first = next(n for n, step in enumerate(curve.steps) if step >= WARM_UP)
    steps = curve.steps[-1] - curve.steps[first]
    found = {"seconds": (curve.times[-1] - curve.times[first]) / steps}
    for name, metric in (
        ("data_wait_fraction", "speed/data_wait_fraction"),
        ("checkpoint_stall_seconds", "speed/checkpoint_stall_seconds"),
    ):
        found[name] = read_curve(database, "overhead", metric)[1][-1]
    split = {phase: read_curve(database, "overhead", f"time/{phase}")[1] for phase in (*IN_ENGINE, "step")}
    timed = range(first + 1, len(split["step"]))  # windows of as many steps each
    engine = sum(split[phase][n] for phase in IN_ENGINE for n in timed)
    found["beside_step"] = 1 - engine / sum(split["step"][n] for n in timed)
    return found


def write_job(options: argparse.Namespace, shards: Path, folder: Path, database: str) -> Path:
    """The job file. Whole steps of every epoch, so that both train full batches only."""
    import torch
    import yaml

    cuda = torch.cuda.is_available()
    job = {
        "kind": "pretrain",
        "name": "overhead",
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
        "tracking": {"uri": database, "every": {"steps": options.track}},
    }
    path = folder / "overhead.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/16", help="(%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (%(default)s, for a CPU)")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="float32", help="(%(default)s)")
    parser.add_argument("--checkpointing", choices=["none", "selective", "full"], default="none", help="(%(default)s)")
    parser.add_argument("--zero-stage", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="timed, of each run (%(default)s)")
    parser.add_argument("--track", type=int, default=5, help="steps between points in MLflow (%(default)s)")
    parser.add_argument("--save", type=int, default=20, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of each (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="that compute, on a CPU (%(default)s)"
    )
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)  # a child process
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and, last, one JSON line."""
    options = parse(arguments)
    if options.bare:
        print(bare_step(options))
        return 0
    from benchmarks.data_sets import write_tars

    words = list(sys.argv[1:] if arguments is None else arguments)
    found: dict[str, list[float]] = {"bare": [], "job": []}
    last: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-overhead-") as temporary:
        shards = Path(temporary) / "shards"
        shards.mkdir()
        write_tars(shards, images=128, samples=64 * options.batch, seed=0)
        for repeat in range(options.repeats):
            child = [sys.executable, str(Path(__file__).resolve()), "--bare", *words]
            environment = {**os.environ, "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", _accelerator())}
            bare = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found["bare"].append(float(bare.stdout.splitlines()[-1]))
            folder = Path(temporary) / f"run-{repeat}"
            folder.mkdir()
            last = job_step(options, shards, folder)
            found["job"].append(last["seconds"])
            seconds = ", ".join(f"{name} {values[-1]:.3f} s a step" for name, values in found.items())
            print(f"{repeat + 1} of {options.repeats}: {seconds}", file=sys.stderr, flush=True)
    bare_s, job_s = statistics.median(found["bare"]), statistics.median(found["job"])
    overhead = 1 - bare_s / job_s
    for name, values in found.items():
        print(f"{name:5} {statistics.median(values):8.4f} s a step   ({', '.join(f'{v:.4f}' for v in sorted(values))})")
    print(f"overhead {overhead:.1%}; data waited for {last['data_wait_fraction']:.1%} of the last run's time,")
    print(f"checkpoints for {last['checkpoint_stall_seconds']:.2f} s in all; beside the step {last['beside_step']:.1%}")
    fields = {"overhead": round(overhead, 4), "bare_s": bare_s, "job_s": job_s, **found}
    print(json.dumps({**fields, **{name: last[name] for name in last if name != "seconds"}, "model": options.model}))
    return 0


def _accelerator() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
