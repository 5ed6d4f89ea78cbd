"""The join between the recipe and the engines: a job file becomes a run on Ray, with DeepSpeed, MLflow and our data."""

from orchestrator.job import Job
from orchestrator.job_file import JobError, load_job

__all__ = ["Job", "JobError", "load_job"]
