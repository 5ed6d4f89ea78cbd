"""Spikes: points far above a curve, such as a loss that shoots up and comes down again."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from orchestrator.names import spike

WINDOW = 64  # points that a new one is compared with
FEWEST = 32  # fewest points for a comparison
DEVIATIONS = 6.0
LEAST_RISE = 0.1  # of the median, for curves that hardly move: their deviation is nearly 0


class SpikeDetector:
    """Compares each point of a curve with the previous ones.

    A spike lies more than 6 median absolute deviations above the median of the last 64 points, and more than a tenth of
    that median. Median and deviation hardly move with the spike itself, unlike mean and standard deviation. For normal
    noise the bound is 6 / 1.4826 = 4 standard deviations; Iglewicz and Hoaglin ("How to Detect and Handle Outliers",
    1993) call 3.5 an outlier, on either side. Noise alone exceeds it with about 1 point in 4,000 if it is normal, and
    1 in 100 if it is Laplacian, more often in the first 64 points. A new level is marked until it fills half
    the window.

    It sees only the tracked steps, and starts empty after a restart.
    """

    def __init__(self) -> None:
        self._points: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> float | None:
        """Add the next point. Returns the median if the point is a spike, else None; ignores what is not finite."""
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
    """Compares several curves, each with its own past."""

    def __init__(self) -> None:
        self._detectors: dict[str, SpikeDetector] = {}

    def mark(self, step: int, values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
        """Compare the curves' points of one step with the previous ones.

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
