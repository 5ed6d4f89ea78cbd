"""The results: rows, ceilings and ratios for the JSON line, and the tables."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.step.matmul import computing_dtype, product_flops
from benchmarks.step.phases import CATEGORIES
from benchmarks.step.search import Trial
from benchmarks.step.task import IMPLS, Task
from model.cost.flops import block_macs, training_flops
from orchestrator.engine.devices import datasheet_peak

GB = 1e9


@dataclass
class Measured:
    """A contender and what its child processes measured.

    Attributes:
        task: what the first child process was asked to measure.
        climbed: its trials by rising batch. Empty if the first batch does not fit into the memory.
        rounds: images per second at the best batch: the windows of each round, by the round's number. In round 0 the
            contender runs alone. The others are turns; ours and the peer beside it have the same numbers.
        error: why there is no result; `details` is the end of the process's output.
    """

    task: Task
    climbed: list[Trial] = field(default_factory=list)
    rounds: dict[int, list[float]] = field(default_factory=dict)
    error: str | None = None
    details: str = ""

    @property
    def best(self) -> Trial | None:
        """The fastest trial of the first round."""
        return max(self.climbed, key=lambda trial: trial.best_rate, default=None)

    @property
    def rates(self) -> list[float]:
        """Images per second of every window of every round; empty if the contender failed in any round."""
        return [] if self.error else [rate for rates in self.rounds.values() for rate in rates]

    @property
    def rate(self) -> float | None:
        """The result: the median of `rates`."""
        return statistics.median(self.rates) if self.rates else None


def hardware_flops(task: Task) -> int:
    """FLOPs that the device does per image: the model's, less what ours omits, plus what checkpointing recomputes.

    Of its last block, ours computes only the class token. Full checkpointing computes the blocks a second time;
    selective keeps their matrix products and attention. What attention kernels recompute internally is not counted.
    """
    config = task.config
    tokens = config.num_tokens
    used_of_last = 1 if task.impl == "ours" else tokens

    omitted = block_macs(config, tokens) - block_macs(config, tokens, used_of_last)
    flops = training_flops(config) - 6 * omitted
    if task.checkpointing == "full":
        whole_block = block_macs(config, tokens, recomputed=True)
        last_block = block_macs(config, tokens, used_of_last, recomputed=True)
        flops += 2 * ((config.depth - 1) * whole_block + last_block)
    return flops


def ceilings(products: Iterable[Measured]) -> list[dict[str, Any]]:
    """TFLOP/s of the bare matrix products, by model and precision."""
    return [
        {
            "model": found.task.config.name,
            "precision": found.task.precision,
            "computes_in": str(computing_dtype(found.task)).removeprefix("torch."),
            "tflops": None if found.rate is None else round(found.rate * product_flops(found.task.config) / 1e12, 4),
            "batch": found.best.batch if found.best else None,
            "error": found.error,
        }
        for found in products
    ]


def row(found: Measured, ceiling: dict[str, Any] | None, device: str) -> dict[str, Any]:
    """One contender's fields of the JSON line.

    Args:
        ceiling: the entry of `ceilings` for its model and precision.
        device: name of the device, which determines the datasheet's peak.
    """
    task, rates, best = found.task, found.rates, found.best
    datasheet = datasheet_peak(device, computing_dtype(task)) if task.device == "cuda" else None
    measured = 1e12 * ceiling["tflops"] if ceiling and ceiling["tflops"] else None

    def utilisation(flops: int, peak: float | None) -> float | None:
        return round(found.rate * flops / peak, 4) if found.rate and peak else None

    of_model, of_hardware = training_flops(task.config), hardware_flops(task)
    return {
        "model": task.config.name,
        "impl": task.impl,
        "compiled": task.compiled,
        "precision": task.precision,
        "checkpointing": task.checkpointing,
        "zero_stage": task.zero_stage if task.impl == "ours" else None,
        "batch": best.batch if best else None,
        "images_per_s": round(found.rate, 4) if found.rate else None,
        "images_per_s_min": round(min(rates), 4) if rates else None,
        "images_per_s_max": round(max(rates), 4) if rates else None,
        "windows": len(rates),
        "tflops": round(found.rate * of_model / 1e12, 4) if found.rate else None,
        "mfu": utilisation(of_model, datasheet),
        "mfu_measured": utilisation(of_model, measured),
        "hfu": utilisation(of_hardware, datasheet),
        "hfu_measured": utilisation(of_hardware, measured),
        "peak_gb": round(best.peak / GB, 3) if best and best.peak else None,
        "loss": best.loss if best else None,
        "breakdown": best.profile.get("breakdown") if best else None,
        "idle": best.profile.get("idle") if best else None,
        "top": best.profile.get("top") if best else None,
        "tried": {str(trial.batch): round(trial.best_rate, 4) for trial in found.climbed},
        "too_large": not found.climbed and found.error is None,
        "error": found.error,
        "details": found.details or None,
    }


def pairs(contenders: Sequence[Measured]) -> Iterator[tuple[Measured, Measured]]:
    """Ours and each peer, for each (model, precision, compiled) that has both, each with its fastest checkpointing."""
    for group in dict.fromkeys(_group(contender.task) for contender in contenders):
        same = [contender for contender in contenders if _group(contender.task) == group and contender.rate]
        ours, *peers = (
            max((one for one in same if one.task.impl == impl), key=lambda one: one.rate or 0.0, default=None)
            for impl in IMPLS
        )
        yield from ((ours, peer) for peer in peers if ours and peer)


def ratios(contenders: Sequence[Measured]) -> list[dict[str, Any]]:
    """How many times faster ours is than the best peer, for each (model, precision, compiled) that has both.

    Because the machine's speed may drift, the ratio is taken within each turn, or within the first round if there were
    no turns. The result is the median. The best peer is the one with the smallest result.
    """
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for ours, peer in pairs(contenders):
        shared = sorted(ours.rounds.keys() & peer.rounds.keys())
        quotients = [
            statistics.median(ours.rounds[number]) / statistics.median(peer.rounds[number])
            for number in ([number for number in shared if number] or shared)
        ]
        group, ratio = _group(ours.task), statistics.median(quotients)
        if group not in found or ratio < found[group]["ours_over_best_peer"]:
            found[group] = {
                "model": group[0],
                "precision": group[1],
                "compiled": group[2],
                "best_peer": peer.task.impl,
                "ours_over_best_peer": round(ratio, 4),
                "least": round(min(quotients), 4),
                "most": round(max(quotients), 4),
                "turns": sum(1 for number in shared if number),
            }
    return list(found.values())


def report(
    products: Sequence[Measured], contenders: Sequence[Measured], device: torch.device, name: str
) -> dict[str, Any]:
    """The measured fields of the JSON line. `name` is the device's."""
    found = ceilings(products)
    of_group = {(ceiling["model"], ceiling["precision"]): ceiling for ceiling in found}
    rows = [
        row(contender, of_group.get((contender.task.config.name, contender.task.precision)), name)
        for contender in contenders
    ]
    peak = datasheet_peak(name, torch.bfloat16) if device.type == "cuda" else None
    return {
        "device": name,
        "datasheet_tflops": peak / 1e12 if peak else None,
        "matmul_tflops": max((ceiling["tflops"] for ceiling in found if ceiling["tflops"]), default=None),
        "matmul": found,
        "rows": rows,
        "ratios": ratios(contenders),
    }


def print_tables(found: dict[str, Any]) -> None:
    print(found["device"])
    columns = ("images/s", "least", "most", "TFLOP/s", "MFU", "of matmul", "HFU", "GB")
    print(f"{'':60}{'batch':>6}" + "".join(f"{column:>11}" for column in columns))
    for row in found["rows"]:
        rates = (row["images_per_s"], row["images_per_s_min"], row["images_per_s_max"], row["tflops"])
        cells = [_number(rate) for rate in rates]
        cells += [_percent(row[key]) for key in ("mfu", "mfu_measured", "hfu")] + [_number(row["peak_gb"])]
        print(f"{_label(row):60}{row['batch'] or '':>6}" + "".join(f"{cell:>11}" for cell in cells) + _remark(row))
    for ceiling in found["matmul"]:
        label = f"{ceiling['model']} {ceiling['precision']} matrix products"
        label += " in float32" if ceiling["computes_in"] == "float32" != ceiling["precision"] else ""
        print(f"{label:60}{ceiling['batch'] or '':>6}{'':33}{_number(ceiling['tflops']):>11}{_remark(ceiling)}")
    if profiled := [row for row in found["rows"] if row["breakdown"]]:
        print(f"\n{'share of a step':60}" + "".join(f"{name.split('_')[0]:>15}" for name in (*CATEGORIES, "idle")))
        for row in profiled:
            shares = [*(row["breakdown"][name] for name in CATEGORIES), row["idle"]]
            print(f"{_label(row):60}" + "".join(f"{_percent(share):>15}" for share in shares))
    if found["ratios"]:
        print(f"\n{'ours / the best peer':60}{'':6}{'':>11}{'least':>11}{'most':>11}")
    for ratio in found["ratios"]:
        label = f"{ratio['model']} {ratio['precision']}{' compiled' if ratio['compiled'] else ''}, {ratio['best_peer']}"
        print(f"{label:66}{ratio['ours_over_best_peer']:>10.3f}x{ratio['least']:>11.3f}{ratio['most']:>11.3f}")


def _group(task: Task) -> tuple[str, str, bool]:
    return task.config.name, task.precision, task.compiled


def _label(row: dict[str, Any]) -> str:
    parts = [row["model"], row["precision"], row["impl"], "compiled" if row["compiled"] else "eager"]
    return " ".join(parts + ([f"{row['checkpointing']} checkpointing"] if row["checkpointing"] != "none" else []))


def _remark(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"  {row['error']}"
    return "  does not fit into the memory" if row.get("too_large") else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
