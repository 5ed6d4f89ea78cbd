"""The description of a run in MLflow: everything but its points."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data import Index
from orchestrator.job.kinds import NetworkJob
from orchestrator.redact import redact_fields, redact_text
from orchestrator.run.folder import initial_tags, run_url
from orchestrator.run.training_set import TrainingSet


@dataclass(frozen=True)
class TrackedDataset:
    """A set of samples that the run reads: `context` is "train" or "eval", `digest` that of its index.

    `about` is what the index notes on how it was made, such as {"min_probability": 0.1, "hard": true}.
    """

    context: str
    name: str
    url: str
    digest: str
    num_samples: int
    num_classes: int
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RunDescription:
    """Everything in MLflow about a run but its points. The same `run_key` continues the same run, across restarts.

    `uri` is MLflow's address, and may hold a password.
    """

    uri: str
    experiment: str
    run_name: str
    run_key: str
    job: Mapping[str, Any]
    """The resolved job as nested mappings."""
    job_yaml: str
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    datasets: Sequence[TrackedDataset] = ()


def describe_run(
    job: NetworkJob, run_id: str, data: TrainingSet, held_out: Mapping[str, Index], *, workers: int, device: str
) -> RunDescription:
    """The description of a job's run.

    Args:
        job: with absolute URLs.
        run_id: the run's identity, from its folder.
        data, held_out: the training set, and the indexes of `data.eval` by name.
        workers: how many train.
        device: the name of what they train on.
    """
    classes, samples = data.index.num_classes, data.order.num_samples
    sets = [TrackedDataset("train", "train", data.index.url, data.digest, samples, classes, dict(data.index.about))]
    for name, index in held_out.items():
        counts = index.num_samples, index.num_classes
        sets.append(TrackedDataset("eval", name, index.url, index.digest, *counts, dict(index.about)))
    resolved = job.model_dump(mode="json")
    return RunDescription(
        uri=job.tracking.uri,
        experiment=job.tracking.experiment,
        run_name=job.name,
        run_key=run_id,
        job=resolved,
        job_yaml=yaml.safe_dump(redact_fields(resolved), sort_keys=False),
        tags={**job.tracking.tags, **initial_tags(run_url(job)), "workers": str(workers), "device": device},
        datasets=sets,
    )


def redacted(description: RunDescription) -> RunDescription:
    """The description without credentials, ready to be stored. Only `uri` keeps its password, and an absolute path."""
    return dataclasses.replace(
        description,
        uri=resolve_uri(description.uri),
        job=redact_fields(description.job),
        job_yaml=redact_text(description.job_yaml),
        tags=redact_fields(description.tags),
        datasets=[
            dataclasses.replace(each, url=redact_text(each.url), about=redact_fields(dict(each.about)))
            for each in description.datasets
        ],
    )


def resolve_uri(uri: str) -> str:
    """A tracking URI with the path of a SQLite database made absolute."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
