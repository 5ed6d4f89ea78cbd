"""Command line of the networks: `python -m model COMMAND --help`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from model.commands import convert, summary
from model.variants import ModelConfigError
from model.weights.weights import WeightsError

COMMANDS = (summary, convert)


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m model", description="Vision Transformers: their cost, and their weights in other formats."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ModelConfigError, WeightsError) as error:
        print(f"error: python -m model {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
