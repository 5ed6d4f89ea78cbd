"""The folder of a run, `{checkpoint.url}/{name}`: what lies in it, and whether a job may continue in it.

    job.yaml        the resolved job as it was last started
    step-*/         checkpoints (`checkpoint.py`)
    samples/        sample ids by step, if the job asks for them (`ledger.py`)
    summary.json    the result, once the run is complete

Ray Train keeps its own state of the run beside these.
"""

import json
from typing import Any

import fsspec
import yaml

from orchestrator.job import PretrainJob
from orchestrator.job_file import JobError
from orchestrator.paths import resolve_url

JOB = "job.yaml"
SUMMARY = "summary.json"

# What may differ from one start of a run to the next without changing what is computed. Where data lies is compared by
# what the index says, when the checkpoint is restored and not here: a bucket may have moved.
FREE_SECTIONS = {"parallel", "cluster", "checkpoint", "evaluate", "tracking"}
FREE_DATA_KEYS = {"pack", "eval", "threads", "prefetch"}


def absolute(job: PretrainJob) -> PretrainJob:
    """The job with every URL made independent of the current directory, as workers and MLflow get it."""
    fields = job.model_dump(mode="json")
    fields["checkpoint"]["url"] = resolve_url(job.checkpoint.url)
    fields["tracking"]["uri"] = resolve_url(job.tracking.uri)
    fields["data"]["train"]["url"] = resolve_url(job.data.train.url)
    if job.data.pack is not None:
        fields["data"]["pack"]["to"] = resolve_url(job.data.pack.to)
    for held_out in fields["data"]["eval"].values():
        held_out["url"] = resolve_url(held_out["url"])
    return type(job).model_validate(fields)


def run_url(job: PretrainJob) -> str:
    """The run's folder, of a job with absolute URLs."""
    return f"{job.checkpoint.url.rstrip('/')}/{job.name}"


def claim(job: PretrainJob, source: str) -> None:
    """Write the job into its run's folder.

    Raises:
        JobError: the folder holds a run of another recipe, which this job must not continue.
    """
    fs, folder = fsspec.core.url_to_fs(run_url(job))
    fields = job.model_dump(mode="json")
    path = f"{folder}/{JOB}"
    if fs.exists(path):
        earlier = yaml.safe_load(fs.cat_file(path))
        changed = _first_difference(recipe(earlier), recipe(fields))
        if changed:
            key, before, now = changed
            raise JobError(
                f"{source}: {key} = {now}: the run in {run_url(job)} was started with {key} = {before}; "
                "give this job another name, or undo the change"
            )
    fs.makedirs(folder, exist_ok=True)
    fs.pipe_file(path, yaml.safe_dump(fields, sort_keys=False).encode())


def read_summary(job: PretrainJob) -> dict[str, Any] | None:
    """The summary of a complete run, or None."""
    fs, folder = fsspec.core.url_to_fs(run_url(job))
    path = f"{folder}/{SUMMARY}"
    if not fs.exists(path):
        return None
    summary: dict[str, Any] = json.loads(fs.cat_file(path))
    return summary


def write_summary(url: str, summary: dict[str, Any]) -> None:
    """Write the summary of the run in the folder `url`."""
    fs, folder = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{folder}/{SUMMARY}", json.dumps(summary, indent=1).encode())


def recipe(fields: dict[str, Any]) -> dict[str, Any]:
    """The part of a job that decides what is computed, with dotted keys."""
    kept = {section: value for section, value in fields.items() if section not in FREE_SECTIONS}
    kept["data"] = {key: value for key, value in fields["data"].items() if key not in FREE_DATA_KEYS}
    kept["data"]["train"] = {key: value for key, value in fields["data"]["train"].items() if key != "url"}
    return dict(_flat(kept, ""))


def _flat(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else key)]


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None
