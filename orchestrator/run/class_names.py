"""A class is one number in all sets of a job, and in its run: names are compared before anything starts.

Sets whose classes have names must have the same list of them. Others, and those whose names only repeat the numbers,
are compared by their number of classes.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from data import Index, storage
from data.errors import DataError
from data.shards.class_names import are_own_numbers, class_names, shown, warn_of_one_based
from orchestrator.job.errors import JobError, Mistakes, with_value
from orchestrator.job.kinds import NetworkJob
from orchestrator.job.mistakes import problem
from orchestrator.redact import print_warning
from orchestrator.run.folder import has_checkpoint, run_url
from orchestrator.run.paths import absolute

CLASSES = "classes.json"


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """A set of a job: the key of its URL, the URL as the job has it, and its index."""

    key: str
    url: str
    index: Index


def with_class_names(index: Index) -> Index:
    """The index, with the names of classes.txt if it has none of its own."""
    with suppress(DataError):  # no right to read it, or to see that it is not there: then there are no names
        return replace(index, class_names=class_names(index))
    return index


def check_classes(job: NetworkJob, sets: Sequence[LabelledSet], head: int) -> None:
    """Compare the classes of all sets that are to be compared.

    Args:
        sets: their indexes have names, if there are any.
        head: number of classes of the network; labels beyond it are masked.

    Raises:
        JobError: the classes of two sets differ, and the run has no checkpoint. A run with checkpoints gets a warning.
            Each set that differs from an earlier one has a line.
    """
    found = Mistakes()
    for place, one in enumerate(sets):
        for other in sets[:place]:
            if (text := _difference(one.index, other.index, head)) is not None:
                where = with_value(job.model_dump(), other.key.split("."))
                found.add(problem(job, one.key, f"{text} {where}; {_advice(one, other)}"))
                break
    try:
        found.report()
    except JobError as error:
        if not has_checkpoint(absolute(job)):
            raise
        for line in error.lines:
            print_warning(f"{line} (the run has checkpoints and continues)")


def warn_of_labels(job: NetworkJob, sets: Iterable[LabelledSet]) -> None:
    """Warn of sets whose labels may count from 1."""
    for one in sets:
        if (text := warn_of_one_based(one.index)) is not None:
            print_warning(str(problem(job, one.key, text)))


def keep_class_names(job: NetworkJob, names: Sequence[str], *, begins: bool) -> None:
    """Write the names of the training set's classes into the run's folder. The run keeps those it began with.

    Args:
        job: with absolute URLs.
        names: by class number; empty if the classes have none.
        begins: whether the run begins; a file that is there is then of a run that never did a step.
    """
    url = f"{run_url(job)}/{CLASSES}"
    if begins:
        storage.remove(url)
    try:
        kept = json.loads(storage.read(url))
    except FileNotFoundError:
        if names:  # of a run that starts, or was begun by an earlier version
            storage.write_atomic(url, json.dumps(list(names)).encode())
        return
    except (ValueError, RecursionError):
        raise JobError(f"{job.source}: {url} is damaged (no JSON list of class names); move the file away") from None
    if names and kept != list(names):
        print_warning(f"{job.source}: data.train has other class names than the run began with, which {url} keeps")


def _difference(one: Index, other: Index, head: int) -> str | None:
    """How the classes of `one` differ from those of `other`; None if they do not. The text ends where the name of
    `other` follows."""
    names, others = _comparable(one.class_names, other.class_names)
    for number, (name, expected) in enumerate(zip(names, others, strict=False)):
        if name != expected:
            return f"class {number} is {shown(name)}, and {shown(expected)} in"
    if len(names) < len(others):
        return f"has {len(names):,} classes, and class {len(names)} is {shown(others[len(names)])} in"
    if len(names) > len(others):
        return f"class {len(others)} is {shown(names[len(others)])}, and there are {len(others):,} classes in"
    count, expected_count = (min(len(index.class_names) or index.num_classes, head) for index in (one, other))
    return None if count == expected_count else f"has {count:,} classes, and there are {expected_count:,} in"


def _comparable(names: Sequence[str], others: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Both lists; empty, if only the numbers of classes can be compared. Names that are numbers lose leading zeros."""
    if are_own_numbers(names) and are_own_numbers(others):
        return (), ()
    are_numbers = [all(name.isdecimal() for name in found) for found in (names, others)]
    if not (names and others) or are_numbers[0] != are_numbers[1]:
        return (), ()
    if are_numbers[0]:
        return [str(int(name)) for name in names], [str(int(name)) for name in others]
    return names, others


def _advice(one: LabelledSet, other: LabelledSet) -> str:
    again = f"{'pack it' if one.index.source else 'index it again'} with --classes {other.url}"
    if one.key.startswith("data.eval."):
        return f"{again}, or say {one.key.removesuffix('.url')}.check_classes: false if the difference is meant"
    return again
