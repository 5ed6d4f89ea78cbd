"""`summary.json`, the result of a complete run, and how it is printed."""

import json
from collections import defaultdict
from typing import Any

from data import storage
from data.quantities import rate
from orchestrator.job.errors import JobError
from orchestrator.job.kinds import NetworkJob
from orchestrator.names import split_held_out
from orchestrator.redact import print_warning
from orchestrator.run.folder import SUMMARY, read_fields, run_url
from orchestrator.run.totals import Totals


def read_summary(job: NetworkJob) -> dict[str, Any] | None:
    """The summary of a complete run, or None. A damaged one counts as none, with a warning: the run writes it again.

    Raises:
        JobError: a folder is in its place, so that it cannot be written again.
    """
    url = f"{run_url(job)}/{SUMMARY}"
    if not storage.exists(url):
        return None
    if storage.is_folder(url):
        raise JobError(f"{job.source}: {url} is a folder, where the run writes its result; move it away")
    try:
        summary = read_fields(job, SUMMARY)
        describe_result(summary, "")  # rendering touches every field, so this validates the file
        if type(summary["step"]) is int and type(summary["workers"]) is int:
            return summary
        reason = "no summary of a run"
    except (JobError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        reason = type(error.__cause__ or error).__name__
    print_warning(f"{job.source}: {url} is damaged ({reason}); the run writes it again")
    return None


def write_summary(url: str, summary: dict[str, Any]) -> None:
    """Write the summary of the run in the folder `url`."""
    storage.write_atomic(f"{url}/{SUMMARY}", json.dumps(summary, indent=1).encode())


def describe_result(summary: dict[str, Any], run_url: str) -> str:
    """A few lines: accuracy on each held-out set, speed, compute, and where everything is."""
    totals, device = Totals.from_dict(summary["totals"]), summary["device"]
    return "\n".join(
        [
            f"trained {totals.steps:,} steps, {totals.samples:,} images",
            *_held_out_lines(summary["metrics"]),
            f"speed:           {rate(summary['images_per_second'], 'images')}, MFU {totals.mfu:.1%} of "
            f"{device['peak_flops'] / 1e12:,.3g} TFLOP/s a device ({device['peak_is']})",
            f"compute:         {totals.exaflops:.3g} exaFLOPs, TPUv3-core-days {totals.core_days_allocated:.3g} "
            f"allocated, {totals.core_days_by_work:.3g} by work",
            f"checkpoints:     {run_url}",
            f"history:         {summary['mlflow']}",
        ]
    )


def _held_out_lines(metrics: dict[str, Any]) -> list[str]:
    sets: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in metrics.items():
        if place := split_held_out(name):
            sets[place[0]][place[1]] = value
    return [
        f"held-out {name}:   {', '.join(_measures(found))} ({found['images']:,.0f} images)"
        for name, found in sorted(sets.items())
    ]


def _measures(found: dict[str, Any]) -> list[str]:
    """What was measured on one set; a set of bad samples alone has no mean."""
    loss = [f"loss {found['loss']:.4f}"] if "loss" in found else []
    return [*_accuracies(found), *loss] or ["no valid samples"]


def _accuracies(found: dict[str, Any]) -> list[str]:
    labels = {"top1": "top-1", "top5": "top-5", "precision_at_1": "precision@1"}
    return [f"{label} {found[metric]:.2%}" for metric, label in labels.items() if metric in found]
