"""Reads a run's metric from MLflow: when each step was done, and the values."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """The steps of a run and when each was first done, in seconds since the epoch. Both rise."""

    steps: Sequence[int]
    times: Sequence[float]

    def peak(self, time: float) -> int:
        """The highest step done before `time`; 0 if there is none."""
        place = bisect_left(self.times, time)
        return self.steps[place - 1] if place else 0

    def seconds_a_step(self) -> float:
        """Mean time of a step between the first and the last point, including saves and evaluations."""
        return (self.times[-1] - self.times[0]) / (self.steps[-1] - self.steps[0])


def read_curve(database: str, run_name: str, metric: str = "train/loss") -> tuple[Curve, list[float]]:
    """A metric of the run `run_name`: its curve, and its values by step.

    Args:
        database: address of the MLflow database, such as "sqlite:///mlflow.db".
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("vit")
    [run] = client.search_runs([experiment.experiment_id], filter_string=f"attributes.run_name = '{run_name}'")
    points = sorted((p.step, p.timestamp / 1000, p.value) for p in client.get_metric_history(run.info.run_id, metric))
    steps, times, values = zip(*points, strict=True)
    # The nodes' clocks may differ a little, so a later step may have an earlier time.
    return Curve(steps, np.maximum.accumulate(times).tolist()), list(values)
