"""What a job would do, for `python -m orchestrator check`: nothing is packed, started or written."""

import os
from dataclasses import dataclass, field
from typing import Any

from data.clusters.joining import cluster_is_named, current_cluster
from orchestrator.checkpoint.manifest import complete_checkpoints
from orchestrator.checkpoint.notes import Owner
from orchestrator.job.errors import unexpected_errors_in
from orchestrator.job.kinds import AnyRun, EvaluateJob, Job, NetworkJob
from orchestrator.job.mistakes import problem
from orchestrator.kinds import one_run
from orchestrator.redact import redact_text
from orchestrator.run.folder import check_run, never_trained, run_url
from orchestrator.run.inputs import Outlook
from orchestrator.run.lock.owner import NAME, read_owner
from orchestrator.run.measured import owed, read_measured
from orchestrator.run.schedule import Calendar
from orchestrator.run.summary import read_summary
from orchestrator.tracking.description import resolve_uri
from orchestrator.tracking.refusal import Asked
from orchestrator.wording import count


@dataclass
class Preview:
    """What a job would do.

    Attributes:
        job: with absolute URLs, as far as its kind resolves them.
        facts: for `--json`.
        lines: the same for people, by title.
        warnings: what may go wrong.
    """

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, title: str, line: str, **facts: Any) -> None:
        """Add a line and what it says as facts."""
        self.lines[title] = line
        self.facts |= facts


def preview(job: Job) -> Preview:
    """Check a job as `run` does before it joins a cluster, and foresee what it would do.

    Raises:
        JobError: `run` would refuse the job, with the same lines.
    """
    with unexpected_errors_in(job.source):
        if isinstance(job, NetworkJob):
            return _training(job)
        if isinstance(job, EvaluateJob):
            return _evaluation(job)
        shown = Preview(job)
        shown.add("kind", f"{job.kind}: this kind only checks the job file")
        return shown


def _training(job: NetworkJob) -> Preview:
    resolved, outlook = one_run.foresee(job)
    shown = Preview(resolved)
    url, inputs = run_url(resolved), outlook.inputs
    identity = None
    if inputs is not None and not outlook.to_pack:
        identity = check_run(resolved, inputs.train.digest)
    begins = identity is None or never_trained(url)
    asked = Asked.about(resolve_uri(resolved.tracking.uri), resolved.tracking.experiment, make=False)
    try:
        _add_start(shown, resolved, outlook, identity)
        _add_cluster(shown, resolved)
        if inputs is None:
            shown.add("length", f"{resolved.schedule.length}; in steps once its images are packed", steps=None)
        else:
            _add_calendar(shown, resolved, inputs.calendar, list(inputs.held_out))
        _add_packing(shown, resolved, outlook)
    finally:
        refused, away = asked.refused_or_away()
    if refused and begins:
        raise problem(resolved, "tracking.uri", f"MLflow refuses the run: {refused}")
    _add_tracking(shown, resolved, refused, away)
    return shown


def _evaluation(job: EvaluateJob) -> Preview:
    from orchestrator.kinds import evaluate  # loads torch, which other jobs are checked without

    prepared = evaluate.prepare(job)
    shown = Preview(prepared.job)
    measured = ", ".join(prepared.models.values())
    shown.add("start", f"measures {measured}; results in {run_url(prepared.job)}", folder=run_url(prepared.job))
    _add_cluster(shown, prepared.job)
    sets = {name: index.num_samples for name, index in prepared.held_out.items()}
    shown.add("sets", ", ".join(f"{name} ({images:,} images)" for name, images in sets.items()), sets=sets)
    asked = Asked.about(resolve_uri(prepared.job.tracking.uri), prepared.job.tracking.experiment, make=False)
    _add_tracking(shown, prepared.job, *asked.refused_or_away())
    return shown


def _add_start(shown: Preview, job: NetworkJob, outlook: Outlook, identity: str | None) -> None:
    """Whether the run begins, continues or is complete."""
    url, step = run_url(job), 0
    if identity is not None and outlook.inputs is not None:
        owner = Owner(identity, outlook.inputs.calendar.total_steps)
        newest = next(complete_checkpoints(url, shown.warnings.append, owner), None)
        step = newest.step if newest is not None else 0
    line, state = f"a new run, in {url}", "new"
    if step:
        line, state = f"continues at step {step:,}, in {url}", "continues"
    summary = read_summary(job) if identity is not None else None
    if summary is not None and outlook.inputs is not None and summary["step"] == outlook.inputs.calendar.total_steps:
        missing = owed(outlook.inputs.digests, read_measured(url), summary["metrics"])
        line, state = f"complete, in {url}", "complete"
        if missing:
            line = f"measures {', '.join(missing)} with the trained weights, in {url}"
        shown.facts["to_measure"] = missing
    if job.model.init_from is not None and state == "new":
        line += f"; its weights are those of {job.model.init_from}"
    shown.add("start", line, folder=url, start=state, step=step)
    if (owner_now := read_owner(f"{url}/{NAME}")) is not None and not owner_now.is_dead:
        shown.warnings.append(f"{owner_now} trains this run now")


def _add_cluster(shown: Preview, job: AnyRun) -> None:
    named = os.environ.get("RAY_ADDRESS")
    if not cluster_is_named():
        line, cluster = "a private Ray on this machine", "private"
    elif named:
        line, cluster = f"the Ray cluster at RAY_ADDRESS = {named}", named
    else:
        cluster = current_cluster().read_text().strip()
        line = f"the Ray cluster at {cluster} ({current_cluster()})"
    fewest, most = job.cluster.min_workers, job.cluster.max_workers
    workers = count(most, "worker") if fewest == most else f"{fewest} to {most} workers"
    each = ", ".join(f"{amount:g} {name}" for name, amount in job.cluster.resources_per_worker.items())
    shown.add("cluster", redact_text(line), cluster=redact_text(cluster))
    shown.add("workers", f"{workers} with {each} each", workers=[fewest, most])
    images = f"{-(-job.batch_size // most):,}" if fewest == most else f"{-(-job.batch_size // most):,} or more"
    shown.add("batch", f"{job.batch_size:,} images, {images} a worker", batch_size=job.batch_size)


def _add_calendar(shown: Preview, job: NetworkJob, calendar: Calendar, held_out: list[str]) -> None:
    total, epochs = calendar.total_steps, calendar.epoch(calendar.total_steps)
    line = f"{total:,} steps, {epochs:,.4g} epochs of {calendar.steps_per_epoch:,} steps"
    if calendar.warmup_steps:
        line += f"; warm-up {calendar.warmup_steps:,} steps"
    shown.add("length", line, steps=total, epochs=epochs, steps_per_epoch=calendar.steps_per_epoch)
    shown.facts["warmup_steps"] = calendar.warmup_steps
    evaluations = -(-total // calendar.evaluate_every) if held_out or job.evaluators else 0
    what = ", ".join([*held_out, *job.evaluators]) or "nothing"
    line = f"{evaluations:,}, every {count(calendar.evaluate_every, 'step')}: {what}" if evaluations else "none"
    shown.add("evaluations", line, evaluations=evaluations, measured=[*held_out, *job.evaluators])
    checkpoints = -(-total // calendar.save_every)
    every = count(calendar.save_every, "step")
    line = f"{checkpoints:,}, every {every}; the newest {job.checkpoint.keep:,} are kept"
    shown.add("checkpoints", line, checkpoints=checkpoints, keep=job.checkpoint.keep)


def _add_packing(shown: Preview, job: NetworkJob, outlook: Outlook) -> None:
    if not outlook.to_pack:
        shown.facts["packs"] = {}
        return
    sizes = job.data.pack.contents() if job.data.pack is not None else None
    packs = {url: sizes[url.rpartition("/")[2]][0] if sizes else None for url in outlook.to_pack}
    words = (url if images is None else f"{url} ({images:,} images)" for url, images in packs.items())
    shown.add("packs", ", ".join(words), packs=packs)


def _add_tracking(shown: Preview, job: AnyRun, refused: str, away: str) -> None:
    uri = redact_text(job.tracking.uri)
    shown.add("MLflow", f"experiment {job.tracking.experiment}, at {uri}", tracking=uri)
    if refused:
        shown.warnings.append(f"tracking.uri = {uri}: MLflow refuses the run, which keeps its points: {refused}")
    elif away:
        shown.warnings.append(f"tracking.uri = {uri}: MLflow is away, and a run would keep its points: {away}")
