"""The search for a contender's best batch, in rising sizes while the rate improves and the memory suffices."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GAIN = 1.02  # least ratio of the rates of two successive batches for the next batch to be tried


@dataclass
class Trial:
    """One batch size, measured.

    Attributes:
        batch: images per step.
        rates: images per second of each timed window.
        peak: largest number of bytes in use; None if the system does not report it.
        loss: mean loss of the last step.
        profile: the result of `phases.profile_step`, if a step was profiled.
    """

    batch: int
    rates: list[float]
    peak: int | None
    loss: float
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def best_rate(self) -> float:
        """The rate of the fastest window: other work on the machine can only slow a window down."""
        return max(self.rates)


def climb(
    batches: Sequence[int], attempt: Callable[[int], Trial | None], *, limit: int, at_rest: int | None
) -> list[Trial]:
    """Measures `batches` in their order, up to the first one that is no faster or does not fit.

    Args:
        batches: rising sizes.
        attempt: measures a batch; None if it does not fit into the memory.
        limit: bytes that a trial may use.
        at_rest: bytes in use before the first step; None if the system does not report it.
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
    """Bytes that `batch` will need, extrapolated from the last two trials; 0 if the system does not report bytes.

    After one trial, the second point is the bytes at rest. They lack gradients and the optimizer's state, so the
    estimate is too high: it is better to skip a size than to exhaust the machine's memory.
    """
    last = trials[-1]
    if last.peak is None or at_rest is None:
        return 0.0
    smaller, below = (trials[-2].batch, trials[-2].peak or 0) if len(trials) > 1 else (0, at_rest)
    slope = (last.peak - below) / (last.batch - smaller)
    return last.peak + max(0.0, slope) * (batch - last.batch)


class Remembered:
    """Best batches by the name of a search. If a file is given, they are read from it and written to it at once."""

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
