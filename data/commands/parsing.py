"""What all commands share: the form of errors, and of descriptions of a data set."""

import argparse
from typing import Any, NoReturn

from data import storage
from data.shards.index import Index

Commands = argparse._SubParsersAction  # what `add_subparsers` returns; argparse has no public name for it
Outcome = tuple[dict[str, Any], int]
"""The result of a command: the facts that `--json` prints, and the exit code."""


class Parser(argparse.ArgumentParser):
    """A parser with the project's form of errors: one line on stderr, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def summary(index: Index) -> str:
    return (
        f"{index.num_samples:,} samples of {index.num_classes:,} classes in {len(index.shards):,} shards, "
        f"{index.num_bytes:,} bytes, at {storage.parent(index.url)}"
    )


def facts(index: Index) -> dict[str, object]:
    return {
        "url": index.url,
        "num_samples": index.num_samples,
        "shards": len(index.shards),
        "bytes": index.num_bytes,
        "num_classes": index.num_classes,
        "multi_label": index.multi_label,
        "extensions": list(index.extensions),
        "source": index.source,
        "digest": index.digest,
    }


def stated(index: Index) -> str:
    """What was said about the labels when the set was packed or indexed; "" if nothing was."""
    rule, about = index.label_rule(), index.about
    parts = [
        f"under the key {rule.key!r} of .json" * bool(rule.key),
        f"of the kind {rule.kind}" * bool(rule.kind),
        "none are meant" * rule.unlabelled,
        f"with a probability above {about.get('min_probability')}" * ("min_probability" in about),
        "each with weight 1 in place of a probability" * bool(about.get("hard")),
    ]
    return ", ".join(filter(None, parts))
