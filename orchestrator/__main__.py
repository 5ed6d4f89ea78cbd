"""The command line: `python -m orchestrator COMMAND --help`."""

import argparse
import json
import sys
from collections.abc import Sequence

from orchestrator.job_file import JobError, load_job

EXAMPLES = """\
examples:
  python -m orchestrator run jobs/pretrain_digits.yaml
  python -m orchestrator run jobs/pretrain_digits.yaml --set optimizer.lr=3e-4 --set name=digits_lr3e-4
  ray job submit jobs/pretrain_digits.yaml            the same, on the cluster that RAY_ADDRESS names
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the run failed, 2 the command or the job file is wrong."""
    parser = argparse.ArgumentParser(
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
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    from orchestrator.check import check_inputs
    from orchestrator.job import PretrainJob

    job = load_job(options.job, options.overrides)
    if not isinstance(job, PretrainJob):
        raise JobError(f"{options.job}: kind = {job.kind}: this version checks such jobs and runs only pretrain")
    inputs = check_inputs(job)

    from orchestrator.run_folder import absolute, claim, read_summary, run_url

    job = absolute(job)
    claim(job, options.job)
    summary = read_summary(job)
    if summary is None or summary["step"] < inputs.total_steps:
        from orchestrator.ray_auth import settle_authentication

        settle_authentication()
        from orchestrator.launch import RunFailed, launch

        try:
            launch(job)
        except RunFailed as failure:
            print(f"error: {options.job}: the run stopped: {failure}", file=sys.stderr)
            return 1
        summary = read_summary(job)
        if summary is None:
            print(f"error: {options.job}: the run left no summary in {run_url(job)}", file=sys.stderr)
            return 1
    else:
        print(f"{job.name} is complete; its folder is {run_url(job)}")
    from orchestrator.result import describe_result

    print(describe_result(summary, run_url(job)))
    if options.json:
        print(json.dumps(summary))
    return 0


def _schema(options: argparse.Namespace) -> int:
    from orchestrator.job_docs import KEYS_FILE, SCHEMA_FILE, json_schema, keys_page

    schema = json.dumps(json_schema(), indent=1) + "\n"
    if options.write:
        SCHEMA_FILE.write_text(schema)
        KEYS_FILE.write_text(keys_page())
    else:
        print(schema, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
