"""`python -m orchestrator check JOB`: what a job would do, and everything that is wrong with it; starts nothing."""

import argparse
import json

import yaml

from orchestrator.commands.parsing import EXAMPLES, Commands
from orchestrator.commands.run import add_job, load_runnable
from orchestrator.kinds.preview import preview
from orchestrator.redact import print_warning, redact_fields, redact_logs, redact_text


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "check",
        help="print the resolved job, what it would do, and everything that is wrong with it; start nothing",
        description="Check a job as `run` does before it joins a cluster: the file, its sets, places, resources and "
        "MLflow. Print the resolved job as YAML, and as comments what it would do: where it begins or continues, on "
        "which cluster, for how many steps, and what it would pack. Stores are read, and MLflow is asked; nothing is "
        "packed, started or written. The exit code is 2 if `run` would refuse the job.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job(command)
    command.add_argument("--json", action="store_true", help="print the same as one JSON object, last")
    command.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the resolved job and what it would do.

    Raises:
        JobError: `run` would refuse the job.
    """
    redact_logs()
    job = load_runnable(options.job, options.overrides)
    shown = preview(job)
    fields = redact_fields(shown.job.model_dump(mode="json"))
    print(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    for title, line in shown.lines.items():
        print(redact_text(f"# {title + ':':<13} {' '.join(line.split())}"))
    for warning in shown.warnings:
        print_warning(f"{job.source}: {warning}")
    if options.json:
        print(json.dumps({"job": fields, **shown.facts, "warnings": [redact_text(text) for text in shown.warnings]}))
    return 0
