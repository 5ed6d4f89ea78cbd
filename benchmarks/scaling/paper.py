"""The calculated table: steps by accelerators and stage, from where communication is exposed, and what is fastest."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.model import Device, Links, Work, measured_device, step_time
from model import ViTConfig, vit_config
from model.cost.flops import activation_bytes
from model.cost.summary import summarize
from orchestrator.engine.memory.fit import FIXED_FLOPS
from orchestrator.engine.memory.needed import ACTIVATION_SHARE, exchange_bytes, state_bytes
from orchestrator.job.sections import Parallel

SHOWS = 0.1  # share of exposed communication in a step that is reported in `shows_from`
MICRO = 1e-6


def device_from(options: argparse.Namespace, config: ViTConfig) -> tuple[Device, dict[str, Any]]:
    """The single accelerator, and its description for the JSON line.

    Raises:
        ValueError: the file of --step has no measurement of the model.
    """
    if options.step is None:
        device = Device(options.tflops * 1e12, FIXED_FLOPS["cuda"])
        return device, {"source": "ASSUMED", "tflops": options.tflops}
    best, name = best_row(options.step, config.name)
    on_cpu = name.endswith(" threads")  # `device_name` of a CPU
    device = measured_device(config, best["batch"], best["images_per_s"], FIXED_FLOPS["cpu" if on_cpu else "cuda"])
    figure = {key: best[key] for key in ("images_per_s", "batch", "precision", "checkpointing", "compiled")}
    return device, {"source": f"measured on {name}", "tflops": round(device.rate / 1e12, 4), **figure}


def best_row(file: Path, name: str) -> tuple[dict[str, Any], str]:
    """From the output of the step benchmark: the fastest row of ours with this model in bf16, and the device's name.

    Raises:
        ValueError: there is no such row.
    """
    try:
        found = json.loads(file.read_text().splitlines()[-1])
        rows, device = found["rows"], found["device"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: its last line is not that of benchmarks.step ({error!r})") from error
    wanted = {"impl": "ours", "model": name, "precision": "bf16"}
    rows = [row for row in rows if row["images_per_s"] and all(row[key] == value for key, value in wanted.items())]
    if not rows:
        raise ValueError(f"{file}: no measured row of ours with {name} in bf16")
    return max(rows, key=lambda row: row["images_per_s"]), device


def on_paper(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the JSON line."""
    sizes = {"num_classes": options.classes, "representation_size": options.representation_size}
    config = vit_config(options.model, **sizes)
    device, described = device_from(options, config)
    parameters = summarize(config)["parameters"]["total"]
    links = Links(
        node=options.node,
        inside=options.inside * 1e9,
        between=options.between * 1e9,
        hop_inside=options.hop_inside * MICRO,
        hop_between=options.hop_between * MICRO,
        fraction=options.fraction,
    )
    work = Work(config, parameters, options.batch, options.micro_batch, options.bucket)
    rows = []
    for ranks in options.ranks:
        for stage in options.stages:
            step = step_time(work, stage, ranks, device, links)
            state, all_of_it = memory_bytes(work, stage, ranks)
            milliseconds = {
                "compute_ms": step.compute,
                "gradients_ms": step.gradients,
                "weights_ms": step.weights,
                "small_ms": step.small,
                "hidden_ms": step.hidden,
                "exposed_ms": step.exposed,
                "step_ms": step.seconds,
            }
            rows.append(
                {
                    "ranks": ranks,
                    "images": math.ceil(options.batch / ranks),
                    "passes": work.passes(ranks)[0],
                    "stage": stage,
                    **{name: round(1e3 * seconds, 3) for name, seconds in milliseconds.items()},
                    "efficiency": round(step.efficiency, 4),
                    "state_gb": round(state / 1e9, 2),
                    "fits": all_of_it <= options.memory_gb * 1e9,
                }
            )
    shows = {}
    for stage in options.stages:
        powers = [2**i for i in range(1, int(math.log2(options.batch)) + 1)]
        shown = [n for n in powers if step_time(work, stage, n, device, links).exposed_share > SHOWS]
        shows[str(stage)] = {"ranks": shown[0], "images": math.ceil(options.batch / shown[0])} if shown else None
    fitting = {ranks: [row for row in rows if row["ranks"] == ranks and row["fits"]] for ranks in options.ranks}
    fastest = {str(n): min(few, key=lambda row: row["step_ms"])["stage"] if few else None for n, few in fitting.items()}
    return {
        "model": config.name,
        "parameters": parameters,
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "bucket": options.bucket,
        "device": described,
        "links": {key: getattr(options, key) for key in ("node", "inside", "between", "hop_inside", "hop_between")}
        | {"fraction": options.fraction},
        "rows": rows,
        "shows_from": shows,
        "fastest": fastest,
    }


def memory_bytes(work: Work, stage: int, ranks: int) -> tuple[int, int]:
    """Bytes per accelerator: of the state, and with buffers, activations without recomputation, and workspaces."""
    parallel = Parallel(zero_stage=stage)
    state = state_bytes(work.parameters, parallel, ranks)
    beside, at_the_end = exchange_bytes(work.parameters, parallel, torch.device("cuda"))
    activations = work.passes(ranks)[1] * activation_bytes(work.config)
    return state, int((state + beside + max(activations, at_the_end)) / ACTIVATION_SHARE)


COLUMNS = (
    ("ranks", "W"),
    ("images", "images"),
    ("stage", "stage"),
    ("compute_ms", "compute"),
    ("gradients_ms", "gradients"),
    ("weights_ms", "weights"),
    ("small_ms", "small"),
    ("hidden_ms", "hidden"),
    ("exposed_ms", "exposed"),
    ("step_ms", "step ms"),
    ("efficiency", "efficient"),
    ("state_gb", "state GB"),
)


def print_paper(found: dict[str, Any]) -> None:
    device, links = found["device"], found["links"]
    print(f"{found['model']}, {found['parameters']:,} parameters, bf16, {found['batch']} images a step")
    print(f"one accelerator: {device['tflops']:g} TFLOP/s of the model with many images, {device['source']}")
    print(
        f"links: {links['node']} a node, {links['inside']:g} GB/s inside, {links['between']:g} GB/s between, "
        f"{links['fraction']:.0%} reached; {links['hop_inside']:g} and {links['hop_between']:g} us a hop"
    )
    print("".join(f"{title:>10}" for _, title in COLUMNS))
    for row in found["rows"]:
        cells = "".join(f"{_cell(key, row[key]):>10}" for key, _ in COLUMNS)
        print(cells + ("" if row["fits"] else "   does not fit"))
    print(f"\nexposed communication takes more than {SHOWS:.0%} of a step")
    for stage, shown in found["shows_from"].items():
        where = f"from {shown['ranks']:,} accelerators, {shown['images']} images each" if shown else "never"
        print(f"  stage {stage}: {where}")
    print("fastest stage that fits: " + ", ".join(f"{found['fastest'][n]} at {int(n):,}" for n in found["fastest"]))


def _cell(key: str, value: float) -> str:
    if key == "efficiency":
        return f"{value:.1%}"
    return f"{value:,.1f}" if key.endswith("_ms") else f"{value:,}"
