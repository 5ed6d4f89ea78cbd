"""The points of a run's curves, and what a spool's records hold: points, folders of files, or texts.

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
_FILE = re.compile(r"\w[\w.-]*")

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
        if is_of_files(record):
            continue
        try:
            points += _points(record)
        except STRANGE as error:
            _log.warning("tracking: a queued record is not a valid point and was left out: %s", one_line(error))
    return points


def is_of_files(record: Record) -> bool:
    """Whether a record holds files: a folder of the run, or texts."""
    return "files" in record or "texts" in record


def folder_of(record: Record) -> str:
    """The folder of a record of files: relative to the run's, and the same in MLflow. Texts may have none: "".

    Raises:
        STRANGE: it leads out of the run's folder, or is none.
    """
    folder = record["files"] if "files" in record else record["folder"]
    if not isinstance(folder, str) or not (_FOLDER.fullmatch(folder) or ("texts" in record and not folder)):
        raise ValueError("no folder of the run")
    return folder


def texts_of(record: Record) -> dict[str, str]:
    """Small files by name, that the record itself holds; empty for a record of a folder.

    Raises:
        STRANGE: they have no such form.
    """
    texts = record.get("texts", {})
    for name, text in texts.items():
        if not isinstance(text, str) or not _FILE.fullmatch(name):
            raise ValueError("no files")
    return dict(texts)


def check_record(record: Record) -> None:
    """Check a record that comes from a file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is strange.
    """
    if is_of_files(record):
        folder_of(record)
        texts_of(record)
    elif any(point.step >= STEPS_LIMIT for point in _points(record)):
        raise ValueError("a step that no run has")


def _points(record: Record) -> list[Point]:
    time_ms, step = int(record["time"]), int(record["step"])
    if not (0 <= time_ms < INT64_LIMIT and abs(step) < INT64_LIMIT):
        raise ValueError("a time or a step that MLflow cannot hold")
    return [Point(str(name), float(value), time_ms, step) for name, value in record["metrics"].items()]


def one_line(error: BaseException) -> str:
    """The error and its first cause on one line: a failure of the network arrives wrapped several times."""
    first = error
    while (inner := first.__cause__ or first.__context__) is not None:
        first = inner
    lines = [f"{type(each).__name__}: {each}".partition("\n")[0][:160] for each in (error, first)]
    return redact_text(lines[0] if first is error else " <- ".join(lines))
