"""What the commands share: errors in one line, and examples."""

import argparse
from typing import Any, NoReturn

Commands = Any
"""What `add_subparsers` returns; argparse has no public name for it."""

EXAMPLES = """\
examples:
  python -m orchestrator run jobs/pretrain_digits.yaml
  python -m orchestrator check jobs/pretrain_digits.yaml   what it would do; starts nothing
  python -m orchestrator run jobs/pretrain_digits.yaml --set optimizer.lr=3e-4 --set name=digits_lr3e-4
  ray job submit jobs/pretrain_digits.yaml            the same, on the cluster that RAY_ADDRESS names
"""


class Parser(argparse.ArgumentParser):
    """Errors in one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")
