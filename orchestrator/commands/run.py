"""`python -m orchestrator run JOB`: run a job on the current cluster, or on a local one."""

import argparse
from collections.abc import Sequence

from orchestrator.commands.parsing import EXAMPLES, Commands
from orchestrator.job.errors import JobError, unexpected_errors_in
from orchestrator.job.kinds import KINDS, Job, Start
from orchestrator.job.load import load_job
from orchestrator.redact import redact_logs


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "run",
        help="run a job on the current cluster, or on a local one when there is none",
        description="Run a job. A run that was interrupted continues from its newest checkpoint; one that is complete "
        "prints its result. The keys of a job file are in docs/job-keys.md.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job(command)
    command.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    command.add_argument(
        "--take-over",
        action="store_true",
        help="take the run from the command that trains it, which then ends without another checkpoint",
    )
    command.set_defaults(function=run)


def add_job(command: argparse.ArgumentParser) -> None:
    """Add the arguments that name a job."""
    command.add_argument("job", metavar="JOB", help="a job file, such as jobs/pretrain_digits.yaml")
    command.add_argument(
        "--set",
        dest="overrides",
        metavar="a.b=c",
        action="append",
        default=[],
        help="change a key of the job; repeatable",
    )


def run(options: argparse.Namespace) -> int:
    """Load the job and do what its kind does.

    Raises:
        JobError: the job cannot be run; nothing was started.
    """
    redact_logs()
    job = load_runnable(options.job, options.overrides)
    return int(KINDS.implementation(job.kind)(job, Start(options.json, options.take_over)))


def load_runnable(path: str, overrides: Sequence[str]) -> Job:
    """Load a job of a kind that this version runs.

    Raises:
        JobError: it is not right, or of another kind.
    """
    with unexpected_errors_in(path):
        job = load_job(path, overrides)
    if KINDS[job.kind].path is None:
        runnable = ", ".join(name for name in KINDS.sections if KINDS[name].path is not None)
        raise JobError(f"{path}: kind = {job.kind}: this version checks such jobs and runs only {runnable}")
    return job
