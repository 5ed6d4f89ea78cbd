"""The join between the recipe and the engines: a job file becomes a run on Ray, with DeepSpeed, MLflow and our data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.job.errors import JobError
    from orchestrator.job.kinds import Job
    from orchestrator.job.load import load_job

__all__ = ["Job", "JobError", "load_job"]

# Job files need PyYAML; the training step alone (`orchestrator.engine`) runs with torch and DeepSpeed.
_OF_JOBS = {"Job": "orchestrator.job.kinds", "JobError": "orchestrator.job.errors", "load_job": "orchestrator.job.load"}


def __getattr__(name: str) -> Any:
    """Import a name of `orchestrator` when it is first used."""
    if name in _OF_JOBS:
        return getattr(import_module(_OF_JOBS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
