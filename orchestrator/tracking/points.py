"""The points of a run's curves, and what a spool's records hold: points, or folders of files.

Records come from files, so what makes no sense in them is left out with a warning.
"""

import logging
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from orchestrator.redact import redact_text
from orchestrator.tracking.spool import STRANGE, Record

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run can end in MLflow."""

INT64_LIMIT = 2**63
"""MLflow keeps steps and times in 64 bits, below this."""

STEPS_LIMIT = 10**12
"""No run has as many steps. A damaged record with one in 64 bits would outrank all points that follow."""

_FOLDER = re.compile(r"[\w-]+(/[\w-]+)*")

_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    time_ms: int
    step: int


def points_of(records: Sequence[Record]) -> list[Point]:
    """The points in the records, in their order."""
    points = []
    for record in records:
        if "files" in record:
            continue
        try:
            points += _points(record)
        except STRANGE as error:
            _log.warning("tracking: a queued record is not a valid point and was left out: %s", one_line(error))
    return points


def folders_of(records: Sequence[Record]) -> list[str]:
    """The folders in the records, relative to the run's, each once. A path that leads out of it is left out."""
    found: dict[str, None] = {}
    for record in records:
        if "files" not in record:
            continue
        try:
            found[_folder(record)] = None
        except ValueError:
            _log.warning("tracking: a queued record is not a folder of the run and was left out")
    return list(found)


def check_record(record: Record) -> None:
    """Check a record that comes from a file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is strange.
    """
    if "files" in record:
        _folder(record)
    elif any(point.step >= STEPS_LIMIT for point in _points(record)):
        raise ValueError("a step that no run has")


def _points(record: Record) -> list[Point]:
    time_ms, step = int(record["time"]), int(record["step"])
    if not (0 <= time_ms < INT64_LIMIT and abs(step) < INT64_LIMIT):
        raise ValueError("a time or a step that MLflow cannot hold")
    return [Point(str(name), float(value), time_ms, step) for name, value in record["metrics"].items()]


def _folder(record: Record) -> str:
    if not isinstance(record["files"], str) or not _FOLDER.fullmatch(record["files"]):
        raise ValueError("no folder of the run")
    return record["files"]


def one_line(error: BaseException) -> str:
    """The error and its first cause on one line: a failure of the network arrives wrapped several times."""
    first = error
    while (inner := first.__cause__ or first.__context__) is not None:
        first = inner
    lines = [f"{type(each).__name__}: {each}".partition("\n")[0][:160] for each in (error, first)]
    return redact_text(lines[0] if first is error else " <- ".join(lines))
