"""What the workers of a run execute, named on the driver without importing it: the driver needs no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """The training loop with one kind's task. Ray pickles it by reference; a worker imports the loop when it calls it.

    Attributes:
        task: dotted path of a subclass of `orchestrator.training.task.Task`.
    """

    task: str

    def __call__(self, config: dict[str, Any]) -> None:
        """Run the loop; `config` is described at `orchestrator.training.loop.train`."""
        from orchestrator.cluster.process_group import imports_without_collection  # imports Ray

        with imports_without_collection():
            from orchestrator.training.loop import train
        train({**config, "task": self.task})


@dataclass(frozen=True)
class Measure:
    """An evaluation. Ray pickles it by reference.

    Attributes:
        models: URL of the network at its step, for each kind of weights.
    """

    models: dict[str, str]

    def __call__(self, config: dict[str, Any]) -> None:
        """Measure; `config` is described at `orchestrator.training.evaluation.measure.measure`."""
        from orchestrator.cluster.process_group import imports_without_collection  # imports Ray

        with imports_without_collection():
            from orchestrator.training.evaluation.measure import measure
        measure({**config, "models": self.models})
