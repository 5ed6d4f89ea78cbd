"""The search for a contender's best batch: up a ladder of sizes while that pays and fits; and its memory."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GAIN = 1.02  # of images a second, that a larger batch must bring for a still larger one to be tried


@dataclass
class Trial:
    """One batch size, measured.

    Attributes:
        batch: images a step.
        rates: images a second, of each timed window.
        peak: most bytes in use; None where the system does not tell.
        loss: mean loss of the last step.
        profile: what `step_profile.profile_step` found, if it was asked.
    """

    batch: int
    rates: list[float]
    peak: int | None
    loss: float
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def best_rate(self) -> float:
        """Of the fastest window: what else the machine does can only slow a window down."""
        return max(self.rates)


def climb(
    batches: Sequence[int], attempt: Callable[[int], Trial | None], *, limit: int, at_rest: int | None
) -> list[Trial]:
    """What was measured of `batches`, in their order, up to the first one that does not pay or does not fit.

    Args:
        batches: rising sizes.
        attempt: measures one; None if the memory does not suffice.
        limit: bytes that a trial may use.
        at_rest: bytes in use before the first step; None where the system does not tell.
    """
    trials: list[Trial] = []
    for batch in batches:
        if trials and expected_peak(trials, batch, at_rest) > limit:
            break
        trial = attempt(batch)
        if trial is None or (trial.peak or 0) > limit:
            break
        trials.append(trial)
        if len(trials) > 1 and trial.best_rate < GAIN * trials[-2].best_rate:
            break
    return trials


def expected_peak(trials: Sequence[Trial], batch: int, at_rest: int | None) -> float:
    """Bytes that `batch` will need, by the line through the last two trials; 0 where the system does not tell.

    The first line goes through the bytes at rest. They lack gradients and the optimizer's state, so it is too steep:
    rather a size that is not tried than a machine without memory.
    """
    last = trials[-1]
    if last.peak is None or at_rest is None:
        return 0.0
    smaller, below = (trials[-2].batch, trials[-2].peak or 0) if len(trials) > 1 else (0, at_rest)
    slope = (last.peak - below) / (last.batch - smaller)
    return last.peak + max(0.0, slope) * (batch - last.batch)


class Remembered:
    """Best batches by the name of a search, in a JSON file if there is one, written as they are found."""

    def __init__(self, file: str | None) -> None:
        self._file = Path(file) if file else None
        self._batches: dict[str, int] = {}
        if self._file and self._file.exists():
            self._batches = json.loads(self._file.read_text())

    def get(self, search: str) -> int | None:
        return self._batches.get(search)

    def put(self, search: str, batch: int) -> None:
        self._batches[search] = batch
        if self._file:
            self._file.write_text(json.dumps(self._batches, indent=1) + "\n")
