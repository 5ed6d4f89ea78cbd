"""The command line: `python -m orchestrator COMMAND --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from orchestrator.job.load import JobError, load_job
from orchestrator.redact import redact_logs, redact_text

if TYPE_CHECKING:
    from orchestrator.job.kinds import PretrainJob
    from orchestrator.run.inputs import Inputs

EXAMPLES = """\
examples:
  python -m orchestrator run jobs/pretrain_digits.yaml
  python -m orchestrator run jobs/pretrain_digits.yaml --set optimizer.lr=3e-4 --set name=digits_lr3e-4
  ray job submit jobs/pretrain_digits.yaml            the same, on the cluster that RAY_ADDRESS names
"""


class Parser(argparse.ArgumentParser):
    """Errors in one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the run failed, 2 the command or the job file is wrong."""
    parser = Parser(
        prog="python -m orchestrator",
        description="Pre-train Vision Transformers from a job file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run a job on the current cluster, or on a local one when there is none",
        description="Run a job. A run that was interrupted continues from its newest checkpoint; one that is complete "
        "prints its result. The keys of a job file are in docs/job-keys.md.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("job", metavar="JOB", help="a job file, such as jobs/pretrain_digits.yaml")
    run.add_argument(
        "--set",
        dest="overrides",
        metavar="a.b=c",
        action="append",
        default=[],
        help="change a key of the job; repeatable",
    )
    run.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    run.set_defaults(function=_run)
    schema = commands.add_parser(
        "schema",
        help="print the job file's JSON Schema, or write it and the page of keys",
        description="Print the JSON Schema of job files, from which editors complete keys.",
    )
    schema.add_argument("--write", action="store_true", help="write jobs/schema.json and docs/job-keys.md instead")
    schema.set_defaults(function=_schema)
    options = parser.parse_args(arguments)
    try:
        return int(options.function(options))
    except JobError as error:
        _complain(str(error))
        return 2


def _complain(text: str) -> None:
    """The one line of what went wrong, without credentials: it may quote a URL, or what a server answered."""
    print(redact_text(f"error: {text}"), file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    redact_logs()
    job, run_id, inputs = _prepare(options)
    from orchestrator.run.folder import read_summary, run_url

    summary = read_summary(job)
    if summary is None or summary["step"] < inputs.total_steps:
        from data.ray_session import settle_authentication

        settle_authentication()
        from orchestrator.cluster.launch import RunFailed, launch
        from orchestrator.training.loop import train

        try:
            launch(job, run_id, train)
        except RunFailed as failure:
            _complain(f"{options.job}: the run stopped: {failure}")
            return 1
        except KeyboardInterrupt:
            print(f"{options.job}: stopped; the same command continues at the newest checkpoint", file=sys.stderr)
            return 130
        summary = read_summary(job)
        if summary is None:
            _complain(f"{options.job}: the run left no summary in {run_url(job)}")
            return 1
    else:
        print(f"{job.name} is complete; its folder is {run_url(job)}")
        from orchestrator.tracking.catch_up import deliver, is_owed

        if is_owed(summary):
            done = deliver(job, run_id, inputs, summary)
            print(
                "MLflow now has what it had not got at the end of the run"
                if done
                else "MLflow does not have all of the run and is away; the same command tries again"
            )
    from orchestrator.run.result import describe_result

    print(describe_result(summary, run_url(job)))
    if options.json:
        print(json.dumps(summary))
    return 0


def _prepare(options: argparse.Namespace) -> "tuple[PretrainJob, str, Inputs]":
    """The job with absolute URLs, the identity of its run, and what it reads: all checked, nothing started.

    Raises:
        JobError: whatever is wrong. File systems, clouds and parsers each have errors of their own, and this is where
            all of them become one line.
    """
    from orchestrator.job.kinds import PretrainJob
    from orchestrator.run.folder import absolute, claim
    from orchestrator.run.inputs import check_inputs

    try:
        job = load_job(options.job, options.overrides)
        if not isinstance(job, PretrainJob):
            raise JobError(f"{options.job}: kind = {job.kind}: this version checks such jobs and runs only pretrain")
        inputs = check_inputs(job)
        job = absolute(job)
        return job, claim(job, inputs.train.digest), inputs
    except JobError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise JobError(f"{options.job}: {type(error).__name__}: {reason or 'no further explanation'}") from error


def _schema(options: argparse.Namespace) -> int:
    from orchestrator.job.docs import KEYS_FILE, SCHEMA_FILE, json_schema, keys_page

    schema = json.dumps(json_schema(), indent=1) + "\n"
    if options.write:
        SCHEMA_FILE.write_text(schema)
        KEYS_FILE.write_text(keys_page())
    else:
        print(schema, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
