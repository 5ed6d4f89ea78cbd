"""Kinds of jobs that are one run: check the inputs, open the run's folder, train on Ray, print the result."""

import json
import sys
from typing import Any

from orchestrator.job.errors import unexpected_errors_in
from orchestrator.job.kinds import NetworkJob, PretrainJob
from orchestrator.kinds.work import Work
from orchestrator.redact import print_error
from orchestrator.run.class_names import keep_class_names
from orchestrator.run.folder import open_run, run_url
from orchestrator.run.inputs import Inputs, open_inputs
from orchestrator.run.paths import absolute
from orchestrator.run.summary import describe_result, read_summary


def pretrain(job: PretrainJob, *, as_json: bool) -> int:
    """Train a classifier on a large set."""
    return run(job, task="orchestrator.training.classify.Classify", as_json=as_json)


def run(job: NetworkJob, *, task: str, as_json: bool) -> int:
    """Train one network to its end, or print the result of a run that is complete.

    Args:
        job: as loaded; its URLs may be relative.
        task: dotted path of the `Task` that the workers carry out.
        as_json: print the result as one JSON object, last.

    Returns:
        The exit code: 0 done, 1 the run failed, 130 stopped by the user.

    Raises:
        JobError: the job cannot be run; nothing was started.
    """
    job, run_id, inputs = prepare(job)
    summary = read_summary(job)
    if summary is None or summary["step"] < inputs.calendar.total_steps:
        if code := train(job, run_id, task):
            return code
        summary = read_summary(job)
        if summary is None:
            print_error(f"{job.source}: the run left no summary in {run_url(job)}")
            return 1
    else:
        print(f"{job.name} is complete; its folder is {run_url(job)}")
        complete_tracking(job, run_id, inputs, summary)

    print(describe_result(summary, run_url(job)))
    if as_json:
        print(json.dumps(summary))
    return 0


def prepare(job: NetworkJob) -> tuple[NetworkJob, str, Inputs]:
    """The job with absolute URLs, the identity of its run, and what it reads: all checked, nothing started.

    Raises:
        JobError: something is wrong, whatever it is.
    """
    with unexpected_errors_in(job.source):
        inputs = open_inputs(job)
        job = absolute(job)
        run_id = open_run(job, inputs.train.digest)
        keep_class_names(job, inputs.train.index.class_names)
        return job, run_id, inputs


def train(job: NetworkJob, run_id: str, task: str) -> int:
    """Train on Ray to the end of the run; returns the exit code."""
    from data.ray_session import settle_authentication

    settle_authentication()  # Ray reads it when it is imported
    from orchestrator.cluster.launch import RunFailed, launch

    try:
        launch(job, run_id, Work(task))
    except RunFailed as failure:
        print_error(f"{job.source}: the run stopped: {failure}")
        return 1
    except KeyboardInterrupt:
        print(f"{job.source}: stopped; the same command continues at the newest checkpoint", file=sys.stderr)
        return 130
    return 0


def complete_tracking(job: NetworkJob, run_id: str, inputs: Inputs, summary: dict[str, Any]) -> None:
    """Deliver to MLflow what it lacks of a complete run."""
    from orchestrator.tracking.catch_up import deliver_rest, is_incomplete

    if not is_incomplete(summary):
        return
    if deliver_rest(job, run_id, inputs, summary):
        print("MLflow now has the whole run")
    else:
        print("MLflow is unreachable and still misses part of this run; run the same command again to retry")
