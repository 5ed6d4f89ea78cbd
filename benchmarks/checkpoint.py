"""Measures how long training stops for a checkpoint, and how long it takes until the checkpoint is complete."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")

import torch
import torch.distributed as dist

EPILOG = """
One process holds the model and its AdamW state under DeepSpeed. Each repeat saves once with `wait` (the time until the
checkpoint is complete), then once without (the time until training may continue), and then waits for its upload. The
first repeat is not counted, because it allocates the snapshot's memory. The bucket is an emulator of Google Cloud
Storage on this machine; its times say nothing about a real one.
"""


def build_engine(name: str, device: torch.device) -> Any:
    """The model in an engine, after one step, so that the optimizer's state exists."""
    import model
    from model.objectives import dense_targets, softmax_cross_entropy
    from orchestrator.engine.step import Engine
    from orchestrator.job.choices import AdamW
    from orchestrator.job.sections import Parallel

    vit = model.create_model(name, num_classes=1000, image_size=224)
    engine = Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 1000)),
        model.decay_mask(vit),
        optimizer=AdamW(name="adamw", lr=1e-3, weight_decay=0.1),
        parallel=Parallel(zero_stage=1, precision="float32"),
        micro_batch=1,
        local_batch=1,
        device=device,
    )
    image, label, valid = torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.zeros(1, 1).long(), torch.ones(1).bool()
    engine.train_step(image, label, torch.ones(1, 1), valid, None, lr=1e-3)
    return engine


def measure(engine: Any, url: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds that training stops for each save: asynchronous, synchronous."""
    from orchestrator.checkpoint.saver import Saver

    saver = Saver(engine, url, 1, say, report=in_thread)
    stalls, syncs = [], []
    for repeat in range(repeats + 1):
        syncs.append(saver.save(3 * repeat, {}, {}, wait=True))
        stalls.append(saver.save(3 * repeat + 1, {}, {}, wait=False))
        while not saver.idle:
            time.sleep(0.01)
        say(f"repeat {repeat} of {repeats}: {stalls[-1]:.3f} s, {syncs[-1]:.3f} s until complete")
    return stalls[1:], syncs[1:]


def in_thread(metrics: dict[str, Any], directory: Path, name: str, upload: Callable[[], None]) -> None:
    """Uploads in a thread, as Ray Train does."""
    threading.Thread(target=upload, daemon=True).start()


@contextmanager
def places(chosen: Sequence[str], folder: Path) -> Iterator[dict[str, str]]:
    """Yields the URL of a run's folder in each place."""
    from infra.local.stores import gcs_server, reached_by

    with ExitStack() as stack:
        urls = {}
        if "disk" in chosen:
            urls["disk"] = str(folder / "run")
        if "bucket" in chosen:
            urls["bucket"] = f"{stack.enter_context(reached_by(stack.enter_context(gcs_server())))}/run"
        yield urls


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    engine = build_engine(options.model, torch.device("cuda", 0) if cuda else torch.device("cpu"))
    state_bytes = 12 * sum(p.numel() for p in engine.deepspeed.module.parameters())
    say(f"{options.model}: {state_bytes:,} bytes of state")
    found: dict[str, Any] = {}
    print(f"{'':10}{'stall, s':>12}{'complete, s':>14}{'stall is':>12}")
    with places(options.places, folder) as urls:
        for place, url in urls.items():
            stalls, syncs = measure(engine, url, options.repeats)
            stall, sync = statistics.median(stalls), statistics.median(syncs)
            found[place] = {"stall_s": round(stall, 4), "sync_s": round(sync, 4), "fraction": round(stall / sync, 4)}
            print(f"{place:10}{stall:12.3f}{sync:14.3f}{100 * stall / sync:10.1f} %")
    dist.destroy_process_group()
    worst = max(found.values(), key=lambda entry: entry["fraction"])
    return {**worst, "state_bytes": state_bytes, "places": found, "model": options.model}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__, epilog=EPILOG)
    parser.add_argument("--model", default="ViT-B/16", help="a name of model.create_model (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="number of saves of each kind (%(default)s)")
    parser.add_argument("--places", nargs="+", choices=("disk", "bucket"), default=["disk", "bucket"])
    parser.add_argument("--work-dir", help="where the run on disk is written (default: a temporary folder)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="benchmark-checkpoint-", dir=options.work_dir) as folder:
        found = run(options, Path(folder))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
