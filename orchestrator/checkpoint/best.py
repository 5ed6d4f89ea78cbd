"""The best checkpoint of a run, by a metric of a held-out set: kept besides the newest ones.

What counts is the value that was measured with the weights of the checkpoint itself. A checkpoint also holds older
values, of evaluations at other steps. Values that are not finite do not count. Of equal ones the earliest is the best:
a later one must be better to take its place.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from orchestrator.checkpoint.manifest import Manifest
from orchestrator.names import EVALUATED


@dataclass(frozen=True)
class Best:
    """What makes a checkpoint the best.

    Attributes:
        metric: such as "eval/val/top1".
        mode: whether the largest value is the best, or the smallest.
    """

    metric: str
    mode: Literal["max", "min"]

    def value(self, step: int, metrics: dict[str, float]) -> float | None:
        """The metric of the weights after `step` steps; None if it was not measured with them, or is not finite."""
        value = metrics.get(self.metric, math.nan)
        return value if metrics.get(EVALUATED) == step and math.isfinite(value) else None

    def is_better(self, value: float, other: float | None) -> bool:
        """Whether `value` is better than `other`. Everything is better than None."""
        return other is None or (value > other if self.mode == "max" else value < other)

    def of(self, manifests: Iterable[Manifest]) -> Manifest | None:
        """The best checkpoint; None if no value counts.

        Args:
            manifests: newest first, as `survey` gives them.
        """
        best: tuple[float, Manifest] | None = None
        for manifest in manifests:
            value = self.value(manifest.step, manifest.metrics)
            if value is None:
                continue
            if best is None or self.is_better(value, best[0]) or (value == best[0] and manifest.step < best[1].step):
                best = value, manifest
        return None if best is None else best[1]
