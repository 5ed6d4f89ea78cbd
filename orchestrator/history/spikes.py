"""Points of a curve that jump out of it, such as a loss that shoots up and comes down again."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from orchestrator.names import spike

WINDOW = 64  # points that a new one is judged by
FEWEST = 32  # points without which none is judged
DEVIATIONS = 6.0
LEAST_RISE = 0.1  # of the median: where a curve hardly moves, its deviation is no measure


class SpikeDetector:
    """Compares each point of a curve with those before it.

    A spike lies more than 6 median absolute deviations above the median of the last 64 points, and more than a tenth of
    that median. Median and deviation hardly move with the spike itself, unlike mean and standard deviation. For normal
    noise the bound is 6 / 1.4826 = 4 standard deviations; Iglewicz and Hoaglin ("How to Detect and Handle Outliers",
    1993) call 3.5 an outlier, on either side. Chance passes it with about 1 point in 4,000 of normal noise and 1 in 100
    of Laplace noise, more often in the first 64 points. A new level is marked until it makes up half of the window.

    It knows only the points it is given, those of the tracked steps, and starts empty after a restart.
    """

    def __init__(self) -> None:
        self._points: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> float | None:
        """Take in the next point; returns the median that it jumps out from, or None. Not finite ones do not count."""
        if not math.isfinite(value):
            return None
        usual = None
        if len(self._points) >= FEWEST:
            middle = median(self._points)
            deviation = median(abs(point - middle) for point in self._points)
            if value - middle > max(DEVIATIONS * deviation, LEAST_RISE * abs(middle)):
                usual = middle
        self._points.append(value)
        return usual


class Spikes:
    """Watches several curves, each by its own past."""

    def __init__(self) -> None:
        self._detectors: dict[str, SpikeDetector] = {}

    def mark(self, step: int, values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
        """Judge the curves' points of one step.

        Args:
            values: metric -> its value, such as `train/loss`.

        Returns:
            `{metric}_spike`: 1.0 for each that spikes; and by metric, a line about it for the terminal.
        """
        marks, lines = {}, {}
        for metric, value in values.items():
            usual = self._detectors.setdefault(metric, SpikeDetector()).add(value)
            if usual is not None:
                marks[spike(metric)] = 1.0
                lines[metric] = f"step {step}: {metric} spikes: {value:.4g}, usually {usual:.4g}"
        return marks, lines
