"""Kinds of jobs that are one run: check the inputs, open the run's folder, train on Ray, print the result."""

import json
import signal
import sys
import threading
from contextlib import ExitStack
from typing import Any

from data import storage
from data.clusters import joining
from data.errors import DataError, NoCluster
from data.ray_session import settle_authentication
from orchestrator.job.errors import JobError, Mistakes, unexpected_errors_in
from orchestrator.job.kinds import AnyRun, NetworkJob, PretrainJob, Start
from orchestrator.job.mistakes import problem
from orchestrator.kinds.work import Work
from orchestrator.redact import print_error, print_warning
from orchestrator.run.class_names import keep_class_names
from orchestrator.run.folder import check_run, has_checkpoint, never_trained, open_run, run_url
from orchestrator.run.inputs import Inputs, Outlook, look_ahead, pack_inputs
from orchestrator.run.lock.lock import RunLock
from orchestrator.run.lock.owner import Taken
from orchestrator.run.measured import owed, read_measured
from orchestrator.run.paths import PathError, absolute
from orchestrator.run.summary import describe_result, read_summary


def pretrain(job: PretrainJob, start: Start) -> int:
    """Train a classifier on a large set."""
    return run(job, start, task="orchestrator.training.classify.Classify")


def run(job: NetworkJob, start: Start, *, task: str) -> int:
    """Train one network to its end, or print the result of a run that is complete.

    A start that is refused writes nothing into the run's folder. So the order is: the job's inputs, the cluster, the
    run's lock, and only then the run's folder.

    Args:
        job: as loaded; its URLs may be relative.
        start: the command's options.
        task: dotted path of the `Task` that the workers carry out.

    Returns:
        The exit code: 0 done, 1 the run failed, 130 stopped by Ctrl-C, 143 by SIGTERM.

    Raises:
        JobError: the job cannot be run; nothing was started.
    """
    job, inputs = prepare(job)
    summary = read_summary(job)
    if (missing := to_do(job, inputs)) is not None:
        if missing:
            print(f"{job.name} has not measured {', '.join(missing)} yet", flush=True)
        if code := train(job, inputs, start, task):
            return code
        summary = read_summary(job)
        if summary is None:
            print_error(f"{job.source}: the run left no summary in {run_url(job)}")
            return 1
    else:
        assert summary is not None, "a complete run has one"
        print(f"{job.name} is complete; its folder is {run_url(job)}")
        complete_tracking(job, inputs, summary)

    print(describe_result(summary, run_url(job)))
    if job.checkpoint.export and (place := export_complete(job, summary)):
        print(f"model:           {place}")
    if start.as_json:
        print(json.dumps(summary))
    return 0


def to_do(job: NetworkJob, inputs: Inputs) -> list[str] | None:
    """None if the run is complete; else the held-out sets that only an evaluation misses, empty if it has to train."""
    summary = read_summary(job)
    if summary is None:
        return []
    missing = owed(inputs.digests, read_measured(run_url(job)), summary["metrics"])
    return missing if missing or summary["step"] != inputs.calendar.total_steps else None


def prepare(job: NetworkJob) -> tuple[NetworkJob, Inputs]:
    """The job with absolute URLs, and what it reads: all checked, its images packed, nothing started.

    Raises:
        JobError: with a line for each thing that is wrong.
    """
    with unexpected_errors_in(job.source):
        resolved, outlook = foresee(job)
        if outlook.inputs is not None and not outlook.to_pack:
            return resolved, outlook.inputs
        inputs = pack_inputs(job)
        check_run(resolved, inputs.train.digest)
        return resolved, inputs


def foresee(job: NetworkJob) -> tuple[NetworkJob, Outlook]:
    """The job with absolute URLs, and what it will read. Packs, starts and writes nothing.

    Raises:
        JobError: with a line for each thing that is wrong: inputs, places, resources of this machine, weights to start
            from, and the run's folder.
    """
    found = Mistakes()
    outlook = Outlook(None, ())
    with found.collected():
        outlook = look_ahead(job)
    try:
        resolved = absolute(job)
    except PathError:  # it has a line already
        with found.collected():
            _check_resources(job)
        found.report()
        raise
    runs = True
    with found.collected():
        runs = outlook.inputs is None or to_do(resolved, outlook.inputs) is not None  # a complete run needs no cluster
        if runs:
            _check_resources(job)
    with found.collected(), unexpected_errors_in(job.source):
        if job.model.init_from is not None and not has_checkpoint(resolved):
            _check_initial(job)
    with found.collected():
        if outlook.inputs is not None and not outlook.to_pack:
            check_run(resolved, outlook.inputs.train.digest)
    found.report()
    if runs:  # last: it may ask another machine, and Ray is imported for that
        _check_reachable(job)
    return resolved, outlook


def check_cluster(job: AnyRun) -> None:
    """Check what can be checked before Ray starts or joins.

    Raises:
        JobError: the named cluster does not answer, or this machine cannot start a private one with such workers.
    """
    _check_reachable(job)
    _check_resources(job)


def _check_reachable(job: AnyRun) -> None:
    """Check that the named cluster answers, or that nothing keeps Ray from starting here. Imports Ray for a named one.

    Raises:
        JobError: it does not, or something does.
    """
    settle_authentication()  # Ray reads it when it is imported
    try:
        joining.check()
    except NoCluster as error:
        raise JobError(f"{job.source}: {error}") from error


def _check_resources(job: AnyRun) -> None:
    """Check that this machine has what the workers of a private cluster need. Imports Ray if that is more than CPUs."""
    settle_authentication()
    if set(job.cluster.resources_per_worker) != {"CPU"}:
        from orchestrator.cluster.connect import check_resources

        check_resources(job)


def _check_initial(job: NetworkJob) -> None:
    """Check the weights of `model.init_from` before anything starts. Loads torch."""
    from orchestrator.checkpoint.initial import InitialError, check_initial

    url = str(job.model.init_from)
    try:
        storage.check_reachable(url)
        check_initial(job.model, print_warning)
    except (InitialError, DataError) as error:
        raise problem(job, "model.init_from", str(error).removeprefix(f"{url}: ")) from error
    except Exception as error:  # each store has its own
        raise problem(job, "model.init_from", f"cannot be opened ({storage.describe(error)})") from error


def train(job: NetworkJob, inputs: Inputs, start: Start, task: str) -> int:
    """Train on Ray to the end of the run; returns the exit code."""
    from orchestrator.cluster.connect import connect
    from orchestrator.cluster.launch import RunEnded, RunFailed, launch
    from orchestrator.cluster.trainer import Terminated
    from orchestrator.tracking.catch_up import FAILURE_SECONDS, STOP_SECONDS, deliver_stop
    from orchestrator.tracking.description import resolve_uri
    from orchestrator.tracking.refusal import Asked

    asked = None
    if check_run(job, inputs.train.digest) is None or never_trained(run_url(job)):
        asked = Asked.about(resolve_uri(job.tracking.uri), job.tracking.experiment)
    try:
        cluster = connect(job)
    except BaseException:
        if asked is not None:
            asked.stop()
        raise
    if asked is not None and (reason := asked.answer()):
        raise problem(job, "tracking.uri", f"MLflow refuses the run: {reason}")
    lock = RunLock(
        run_url(job),
        cluster.name,
        say=lambda line: print(f"{job.name}: {line}", flush=True),
        on_loss=lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT),
        take_over=start.take_over,
    )
    try:
        with ExitStack() as owned:
            run_id = own(job, inputs, lock, owned)
            try:
                launch(job, run_id, Work(task), cluster=cluster, lock=lock.owner.token, held_out=inputs.digests)
            except (KeyboardInterrupt, RunFailed) as stop:
                if isinstance(stop, RunFailed):
                    unsaid, seconds = stop.unsaid, FAILURE_SECONDS
                else:
                    unsaid, seconds = "KILLED", STOP_SECONDS
                if unsaid and lock.lost_to is None and not never_trained(run_url(job)):
                    deliver_stop(job, run_id, inputs, unsaid, seconds)
                raise
    except RunFailed as failure:
        print_error(f"{job.source}: the run stopped: {failure}")
        return 1
    except RunEnded as saved:
        print(f"{job.source}: stopped; {saved}, where the same command continues", file=sys.stderr)
        return 143
    except KeyboardInterrupt as stop:
        if lock.lost_to is not None:
            print_error(f"{job.source}: the run stopped: {lock.lost_to} took it over")
            return 1
        print(f"{job.source}: stopped; the same command continues at the newest checkpoint", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 0


def own(job: NetworkJob, inputs: Inputs, lock: RunLock, owned: ExitStack) -> str:
    """Take the run's lock for as long as `owned` lives, and open the run's folder; returns the run's identity.

    Raises:
        JobError: another command trains the run, or the folder cannot be written.
    """
    with unexpected_errors_in(job.source):
        try:
            owned.enter_context(lock)
        except Taken as owner:
            text = f"{owner} trains this run; stop that command first, or use --take-over"
            raise problem(job, "name", text) from None
        begins = check_run(job, inputs.train.digest) is None
        run_id = open_run(job, inputs.train.digest)
        keep_class_names(job, inputs.train.index.class_names, begins=begins)
        return run_id


def export_complete(job: NetworkJob, summary: dict[str, Any]) -> str | None:
    """Write the model of a complete run into its folder, unless it is there. Loads torch.

    Returns:
        The folder; None if it cannot be written, which takes nothing from the run: a warning says why.
    """
    url = run_url(job)
    place = f"{url}/export"
    try:
        from orchestrator.checkpoint.as_model.export import is_current, write_export
        from orchestrator.checkpoint.as_model.trained import Address, read_trained

        if not is_current(place, summary["step"], summary["metrics"]):
            write_export(read_trained(Address(url), print_warning), place)
        return place
    except Exception as error:  # of any store or library
        again = f"`python -m orchestrator export {url} {place} --force` tries again"
        print_warning(f"{job.source}: the model is not in {place} ({storage.describe(error)}); {again}")
        return None


def complete_tracking(job: NetworkJob, inputs: Inputs, summary: dict[str, Any]) -> None:
    """Deliver to MLflow what it lacks of a complete run."""
    from orchestrator.tracking.catch_up import deliver_rest, is_incomplete

    if not is_incomplete(summary):
        return
    if deliver_rest(job, open_run(job, inputs.train.digest), inputs, summary):
        print("MLflow now has the whole run")
    else:
        print("MLflow is unreachable and still misses part of this run; run the same command again to retry")
