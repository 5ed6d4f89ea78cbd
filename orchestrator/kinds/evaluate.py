"""Kind evaluate: check the network and the sets, measure on Ray, and report: terminal, MLflow, files.

    RUN/job.yaml              the resolved job, without credentials
    RUN/results.json          what the workers measured
    RUN/answers/SET.npz       which images were answered rightly, in order of the index
    RUN/report/...            tables and pictures (`kinds/evaluation_files.py`)
    RUN/summary.json          the result

A name that is measured again replaces its results.
"""

import json
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from data import Index, storage
from data.shards.index import CLASS_MAP
from orchestrator.job import tables
from orchestrator.job.choices import Objective
from orchestrator.job.errors import unexpected_errors_in
from orchestrator.job.kinds import EvaluateJob, Start
from orchestrator.job.mistakes import problem
from orchestrator.kinds.evaluation_files import read_answers, write_report
from orchestrator.kinds.evaluation_text import describe
from orchestrator.kinds.one_run import check_cluster
from orchestrator.kinds.work import Measure
from orchestrator.redact import print_error, print_warning, redact_fields
from orchestrator.run.folder import JOB, RUN, run_url
from orchestrator.run.inputs import open_sets
from orchestrator.run.paths import PathError, absolute, resolve_url
from orchestrator.run.summary import write_summary

if TYPE_CHECKING:
    from orchestrator.checkpoint.as_model.trained import Trained

DELIVERY_SECONDS = 60.0
"""How long MLflow may take to get the results."""

REAL = "ImageNet ReaL"  # the note of its index


def evaluate(job: EvaluateJob, start: Start) -> int:
    """Measure a trained network on held-out sets.

    Returns:
        The exit code: 0 done, 1 the evaluation failed, 130 stopped by Ctrl-C, 143 by SIGTERM.

    Raises:
        JobError: the job cannot be run; nothing was started.
    """
    with unexpected_errors_in(job.source):
        prepared = prepare(job)
        job, models, held_out = prepared.job, prepared.models, prepared.held_out
        url = run_url(job)
        before = read_compared(job, held_out)
        storage.write_atomic(f"{url}/{JOB}", yaml.safe_dump(redact_fields(job.model_dump(mode="json"))).encode())
    if code := measure(job, models, held_out):
        return code

    names = {name: index.class_names or prepared.class_names for name, index in held_out.items()}
    results = json.loads(storage.read(f"{url}/results.json"))
    summary = {
        "name": job.name,
        "models": models,
        "workers": job.cluster.max_workers,
        "sets": {name: how_measured(job, name, index) for name, index in held_out.items()},
        "results": results,
        "metrics": metrics_of(results),
        "paired": write_report(url, names, list(models), before),
    }
    deliver(job, held_out, summary)
    write_summary(url, summary)
    print(describe(summary, url))
    if start.as_json:
        print(json.dumps(summary))
    return 0


@dataclass(frozen=True)
class Prepared:
    """What an evaluation measures.

    Attributes:
        job: with absolute URLs, and all that the network and the sets decide.
        models: URL of the network at its step, for each kind of weights.
        held_out: indexes of `data.eval`, by name.
        class_names: of the network, by number; empty if its classes have none.
    """

    job: EvaluateJob
    models: dict[str, str]
    held_out: dict[str, Index]
    class_names: list[str]


def prepare(job: EvaluateJob) -> Prepared:
    """Check all that the job names; nothing is started, nothing written.

    Raises:
        JobError: something is wrong, whatever it is.
    """
    check_cluster(job)
    try:
        found = find_models(job)
    except (PathError, ValueError) as error:
        raise problem(job, "model.init_from", str(error)) from error
    _, network = next(iter(found.values()))
    size = job.model.image_size or network.config.image_size
    if size % network.config.patch_size:
        raise problem(job, "model.image_size", f"not a multiple of the patch of {network.config.patch_size} pixels")
    held_out = open_sets(job, network.config.num_classes, size)

    fields = absolute(job).model_dump(mode="json")
    fields["model"]["image_size"] = size
    fields["objective"] = fields["objective"] or objective_of(network.origin.get("loss")).model_dump(mode="json")
    for name, index in held_out.items():
        fields["data"]["eval"][name]["rule"] = rule_of(job, name, index)
    resolved = EvaluateJob.model_validate(fields)
    resolved.read_from(job.source, job.overrides)
    if storage.exists(f"{run_url(resolved)}/{RUN}"):
        raise problem(job, "name", f"{run_url(resolved)} is the folder of a run that trains; choose another name")
    return Prepared(resolved, {kind: url for kind, (url, _) in found.items()}, held_out, network.class_names)


def find_models(job: EvaluateJob) -> dict[str, tuple[str, "Trained"]]:
    """For each kind of weights, the URL of the network, of a run at its step, and all but its weights.

    Raises:
        ValueError: there is no such model; the text is one line.
        Exception: the store's error.
    """
    from orchestrator.checkpoint.as_model.trained import ModelError, run_address  # imports torch
    from orchestrator.checkpoint.weights import read_model

    url = resolve_url(job.model.init_from)
    storage.check_reachable(url)
    address = run_address(url)
    if address is None:
        if job.weights not in (None, ["live"]):
            raise ModelError(f"an exported model has one kind of weights, and weights = {job.weights}; remove that key")
        return {"live": (url, read_model(url, print_warning, values=False))}
    wanted: list[str] = [address.weights] if job.weights is None else [*job.weights]
    found, step = {}, address.step
    for kind in dict.fromkeys(wanted):
        model = read_model(f"{address.url}@{step}#{kind}", print_warning, values=False)
        step = str(model.step)  # the same for all
        found[kind] = f"{address.url}@{step}" + ("" if kind == "live" else f"#{kind}"), model
    return found


def objective_of(loss: str | None) -> Objective:
    """The objective of this name with its own defaults; softmax for an unknown one."""
    section = tables.OBJECTIVES.sections.get(loss or "softmax", tables.OBJECTIVES.sections["softmax"])
    name = loss if loss in tables.OBJECTIVES.sections else "softmax"
    return section.model_validate({"loss": name})


def rule_of(job: EvaluateJob, name: str, index: Index) -> str:
    """The rule of a set: that of the job, else the one that its index asks for.

    Raises:
        JobError: the rule does not fit the set.
    """
    key, rule = f"data.eval.{name}.rule", job.data.eval[name].rule
    if rule is None:
        if CLASS_MAP in index.about:
            return "objectnet"
        if index.measure_only == REAL:
            return "any_label"
        return "multi_label" if index.multi_label else "top1"
    if rule == "top1" and index.multi_label:
        raise problem(job, key, "its images have several labels; use any_label or multi_label")
    if rule == "objectnet" and CLASS_MAP not in index.about:
        raise problem(job, key, "the set has no class map; pack it with `python -m data pack objectnet`")
    return rule


def measure(job: EvaluateJob, models: dict[str, str], held_out: dict[str, Index]) -> int:
    """Measure on Ray; returns the exit code."""
    from data.ray_session import settle_authentication

    settle_authentication()  # Ray reads it when it is imported
    from orchestrator.cluster.connect import connect
    from orchestrator.cluster.launch import RunFailed, launch
    from orchestrator.cluster.trainer import Terminated

    cluster = connect(job)
    try:
        digests = {name: index.digest for name, index in held_out.items()}
        launch(job, uuid.uuid4().hex, Measure(models), cluster=cluster, lock="", held_out=digests)
    except RunFailed as failure:
        print_error(f"{job.source}: the evaluation stopped: {failure}")
        return 1
    except KeyboardInterrupt as stop:
        print(f"{job.source}: stopped; the same command measures again", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 0


def how_measured(job: EvaluateJob, name: str, index: Index) -> dict[str, Any]:
    """What a number of this set means: its images, rule and preprocessing."""
    settings = job.data.eval[name]
    return {
        "url": settings.url,
        "digest": index.digest,
        "rule": settings.rule,
        "positive": settings.positive,
        "augment": settings.augment.model_dump(),
        "image_size": job.model.image_size,
    }


def metrics_of(results: dict[str, Any]) -> dict[str, float]:
    """All metrics by name. Those of averaged weights have `ema` in them: eval/SET/ema/top1."""
    metrics: dict[str, float] = {}
    for weights, found in results.items():
        for name, value in found["metrics"].items():
            head, metric = name.rsplit("/", 1)
            metrics[name if weights == "live" else f"{head}/{weights}/{metric}"] = value
    return metrics


def read_compared(job: EvaluateJob, held_out: dict[str, Index]) -> dict[str, Any]:
    """The answers of the evaluation `compare`, by set.

    Raises:
        JobError: it is no evaluation, or measured none of these sets.
    """
    if job.compare is None:
        return {}
    try:
        found = read_answers(job.compare, {name: index.digest for name, index in held_out.items()})
    except ValueError as error:
        raise problem(job, "compare", str(error)) from error
    if not found:
        raise problem(job, "compare", "no answers to any of the sets of data.eval; measure the same sets there")
    return found


def deliver(job: EvaluateJob, held_out: dict[str, Index], summary: dict[str, Any]) -> None:
    """Store the results in MLflow, as a run of their own at the network's step."""
    from orchestrator.tracking.description import RunDescription, TrackedDataset
    from orchestrator.tracking.tracker import Tracker

    resolved = job.model_dump(mode="json")
    sets = [
        TrackedDataset("eval", name, index.url, index.digest, index.num_samples, index.num_classes, dict(index.about))
        for name, index in held_out.items()
    ]
    description = RunDescription(
        uri=job.tracking.uri,
        experiment=job.tracking.experiment,
        run_name=job.name,
        run_key=uuid.uuid4().hex,
        job=resolved,
        job_yaml=yaml.safe_dump(redact_fields(resolved), sort_keys=False),
        tags={**job.tracking.tags, "model": next(iter(summary["models"].values()))},
        datasets=sets,
    )
    tracker = Tracker.beside(description, run_url(job), system_seconds=None)
    step = next(iter(summary["results"].values()))["step"]
    tracker.log(step, summary["metrics"])
    if held_out:
        tracker.attach("report")
    summary["mlflow_complete"] = tracker.close("FINISHED", timeout=DELIVERY_SECONDS)
    summary["mlflow_run_id"], summary["mlflow"] = tracker.run_id, tracker.url_hint()
    if not summary["mlflow_complete"]:
        print_warning(f"{tracker.trouble or 'MLflow is unreachable'}; the results are in {run_url(job)}/summary.json")
