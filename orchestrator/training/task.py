"""What differs between kinds of jobs on a worker: the network, its objective and its measurements.

The loop, checkpoints, elasticity and the curves are the same for every kind that trains.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from data import Batch
from model import VisionTransformer
from orchestrator.engine.step import Engine, Objective
from orchestrator.job.kinds import NetworkJob
from orchestrator.training.measurement import HeldOutSet


class Task(ABC):
    """One kind of job on a worker.

    Args:
        job: the job, with absolute URLs.
    """

    def __init__(self, job: NetworkJob) -> None:
        self.job = job

    @abstractmethod
    def network(self) -> VisionTransformer:
        """The network. Its initial weights depend on PyTorch's random state alone, which the caller seeds."""

    @abstractmethod
    def objective(self) -> Objective:
        """(network's output, labels (n, L), weights (n, L)) -> loss of each sample (n,) float32."""

    @abstractmethod
    def seeds(self, batch: Batch) -> Tensor | None:
        """One int64 seed a slot (n,), for what is random in the network; None if nothing is."""

    @abstractmethod
    def measure(self, engine: Engine, held_out: HeldOutSet) -> dict[str, float]:
        """The metrics of one set of `data.eval`, equal on all ranks. Every rank calls it at the same step."""
