"""The report of an evaluation on the terminal."""

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.names import held_out

LABELS = {"top1": "top-1", "top5": "top-5", "precision_at_1": "precision@1", "top1_among_shared": "top-1 of shared"}
RULES = {
    "top1": "the one label",
    "any_label": "any of the labels",
    "multi_label": "any label above {positive:g}",
    "objectnet": "a class of the object",
}
MOST_PAIRS = 5  # of a set


def describe(summary: Mapping[str, Any], run_url: str) -> str:
    """A table of all sets, with standard errors and preprocessing; paired tests; where everything is."""
    lines = []
    for weights, url in summary["models"].items():
        results = summary["results"][weights]
        lines.append(f"{url}: {weights} weights at step {results['step']:,}")
        rows = [_row(name, about, results["metrics"]) for name, about in summary["sets"].items()]
        if rows:
            lines += _table([["set", "images", "accuracy ± standard error", "loss", "ECE", "images/s"], *rows])
        known = {f"{held_out(name)}/" for name in summary["sets"]}
        lines += [
            f"  {name}: {value:.4g}"
            for name, value in results["metrics"].items()
            if not any(name.startswith(start) for start in known)
        ]
    for name, about in summary["sets"].items():
        rule = RULES[about["rule"]].format(**about)
        lines.append(f"{name}: right is {rule}; images: {preprocessing(about['augment'], about['image_size'])}")
        lines += [f"  {line}" for line in _worst(summary["paired"].get(name, {}).get("worst", []))]
    for name, about in summary["paired"].items():
        lines += [f"{name}: {_paired(pair)}" for pair in about["pairs"]]
    lines += [f"report:          {run_url}", f"history:         {summary['mlflow']}"]
    return "\n".join(lines)


def preprocessing(augment: Mapping[str, Any], image_size: int) -> str:
    """In words, how images become inputs, and which school that is."""
    side = augment["resize"] or image_size * 256 // 224
    words = {
        "resize": f"the whole image squeezed to {image_size} x {image_size} (as in vit_jax)",
        "center": f"shorter side to {side}, middle {image_size} x {image_size} (as in big_vision)",
        "resize_center": f"the whole image squeezed to {side} x {side}, middle {image_size} x {image_size}",
    }[augment["crop"]]
    return words if augment["exact"] else f"{words}, averaged first if a side shrinks more than twice"


def _row(name: str, about: Mapping[str, Any], metrics: Mapping[str, float]) -> list[str]:
    of_set = {key.removeprefix(f"{held_out(name)}/"): value for key, value in metrics.items()}
    accuracies = ", ".join(
        f"{label} {_percent(of_set[key])} ± {_percent(of_set[f'{key}_se'])}"
        for key, label in LABELS.items()
        if key in of_set
    )
    images = f"{of_set.get('judged_images', of_set['images']):,.0f}"
    if of_set["bad_samples"]:
        images += f" ({of_set['bad_samples']:,.0f} unusable)"
    return [
        name,
        images,
        accuracies,
        f"{of_set['loss']:.4f}",
        _percent(of_set["ece"]),
        f"{of_set['images_per_second']:,.0f}",
    ]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _worst(pairs: list[Mapping[str, Any]]) -> list[str]:
    return [f"{pair['images']:,} of {pair['truth']} taken for {pair['prediction']}" for pair in pairs[:MOST_PAIRS]]


def _paired(pair: Mapping[str, Any]) -> str:
    return (
        f"{pair['first']} less {pair['second']}: {_percent(pair['difference'], sign=True)} "
        f"(95 %: {_percent(pair['low'], sign=True)} to {_percent(pair['high'], sign=True)}), right alone "
        f"{pair['only_first']:,} and {pair['only_second']:,}, p {pair['p']:.3g}"
    )


def _percent(value: float, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:+.2%}" if sign else f"{value:.2%}"
