"""`python -m orchestrator schema`: the JSON Schema of job files, and the page of keys."""

import argparse
import json

from orchestrator.commands.parsing import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "schema",
        help="print the job file's JSON Schema, or write it and the page of keys",
        description="Print the JSON Schema of job files, from which editors complete keys.",
    )
    command.add_argument("--write", action="store_true", help="write jobs/schema.json and docs/job-keys.md instead")
    command.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the schema, or write both files."""
    from orchestrator.job.docs import KEYS_FILE, SCHEMA_FILE, json_schema, keys_page

    schema = json.dumps(json_schema(), indent=1) + "\n"
    if options.write:
        SCHEMA_FILE.write_text(schema)
        KEYS_FILE.write_text(keys_page())
    else:
        print(schema, end="")
    return 0
