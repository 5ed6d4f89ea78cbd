"""The command line: `python -m orchestrator COMMAND --help`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from orchestrator.commands import check, export, features, predict, run, schema
from orchestrator.commands.parsing import EXAMPLES, Parser
from orchestrator.job.errors import JobError
from orchestrator.redact import print_error

COMMANDS = (run, check, export, predict, features, schema)
MOST_LINES = 10  # of mistakes that are printed one by one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the run failed, 2 the command or the job file is wrong.

    SIGTERM ends the process with 143, as in a shell, and what it started with it.
    """
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may hold what the terminal's encoding lacks
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = Parser(
        prog="python -m orchestrator",
        description="Pre-train Vision Transformers from a job file, and use them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.function(options))
    except JobError as error:
        for line in error.lines[:MOST_LINES]:
            print_error(line)
        if (left := len(error.lines) - MOST_LINES) > 0:
            print_error(f"and {left:,} more")
        return 2


if __name__ == "__main__":
    sys.exit(main())
