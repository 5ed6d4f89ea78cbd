"""What a finished run prints."""

from typing import Any

from orchestrator.run.totals import Totals
from orchestrator.wording import rate


def describe_result(summary: dict[str, Any], run_url: str) -> str:
    """A few lines: accuracy on each held-out set, speed, compute, and where everything is."""
    metrics, totals = summary["metrics"], Totals.from_dict(summary["totals"])
    lines = [f"trained {totals.steps:,} steps, {totals.samples:,} images"]
    sets = sorted({key.split("/")[1] for key in metrics if key.startswith("eval/")})
    for name in sets:
        found = {key.split("/")[2]: value for key, value in metrics.items() if key.startswith(f"eval/{name}/")}
        accuracy = ", ".join(
            f"{label} {found[key]:.2%}"
            for key, label in (("top1", "top-1"), ("top5", "top-5"), ("precision_at_1", "precision@1"))
            if key in found
        )
        lines.append(f"held-out {name}:   {accuracy}, loss {found['loss']:.4f} ({found['images']:,.0f} images)")
    device = summary["device"]
    lines += [
        f"speed:           {rate(summary['images_per_second'])}, MFU {totals.mfu:.1%} of "
        f"{device['peak_flops'] / 1e12:,.3g} TFLOP/s a device ({device['peak_is']})",
        f"compute:         {totals.exaflops:.3g} exaFLOPs, TPUv3-core-days {totals.core_days_allocated:.3g} allocated, "
        f"{totals.core_days_by_work:.3g} by work",
        f"checkpoints:     {run_url}",
        f"history:         {summary['mlflow']}",
    ]
    return "\n".join(lines)
