"""The model card: what a model is, where it comes from, what it is worth, and five lines that use it."""

from collections.abc import Mapping
from typing import Any

from orchestrator.checkpoint.as_model.trained import Trained
from orchestrator.names import split_held_out

COUNTS = ("/images", "/judged_images", "/bad_samples")

USE = """\
from orchestrator.inference.model import open_model

model = open_model({url!r})
for batch in model.read(["image.png"]):  # files, folders, patterns
    print(model.class_name(int(model.probabilities(batch.images)[0].argmax())))
"""


def card(model: Trained, settings: Mapping[str, Any], url: str) -> str:
    """The text of the card, in Markdown.

    Args:
        settings: the content of `model.json`.
        url: the folder, as the user names it.
    """
    config, origin = model.config, settings["provenance"]
    crop = "the whole image" if model.augment.crop == "resize" else "the middle of the image"
    code = origin.get("code") or {}
    rows = {
        "network": f"{config.name}, {sum(t.numel() for t in model.tensors.values()):,} parameters",
        "input": f"{config.image_size} x {config.image_size} pixels, {crop}, in [-1, 1]",
        "output": f"{config.num_classes:,} classes",
        "job": origin.get("job"),
        "run": origin.get("run"),
        "step": f"{origin['step']:,}",
        "weights": f"{'averaged' if origin.get('weights') == 'ema' else 'live'}, {settings['weights']['dtype']}",
        "training set": f"digest {origin.get('data')}",
        "code": ", ".join(f"{key} {value}" for key, value in code.items()) or None,
        **{_named(name): _value(name, value) for name, value in sorted(model.metrics.items())},
        "SHA-256 of the weights": settings["weights"]["sha256"],
    }
    table = "".join(f"| {_cell(key)} | {_cell(value)} |\n" for key, value in rows.items() if value is not None)
    measured = origin.get("evaluated_step")
    note = f"Measured at step {measured:,.0f}.\n\n" if measured not in (None, origin["step"]) else ""
    title = f"# {config.name}, trained by {_cell(origin.get('job') or 'this program')}"
    return f"{title}\n\n| | |\n|---|---|\n{table}\n{note}```python\n{USE.format(url=url)}```\n"


def _named(metric: str) -> str:
    held_out, name = split_held_out(metric) or ("", metric)
    return f"{name} on {held_out}"


def _value(metric: str, value: float) -> str:
    return f"{value:,.0f}" if metric.endswith(COUNTS) else f"{value:.4f}"


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")
