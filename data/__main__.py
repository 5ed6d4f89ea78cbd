"""Command line of the data plane: `python -m data COMMAND --help`."""

import argparse
import io
import json
import signal
import sys
from collections.abc import Sequence

from data.commands import dedup, pack, show, verify
from data.commands.parsing import Parser
from data.errors import DataError

COMMANDS = (pack, verify, dedup, show)


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        facts, code = options.run(options)
    except (DataError, OSError) as error:
        print(f"error: python -m data {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m data {options.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    if options.json:
        print(json.dumps(facts))
    return int(code)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m data", description="Make, index, check, compare and show WebDataset shards.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = module.add(commands)
        command.add_argument("--json", action="store_true", help="print one JSON object last")
    return top


if __name__ == "__main__":
    sys.exit(main())
