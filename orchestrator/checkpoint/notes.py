"""The two small files beside a manifest: whose checkpoint it is, and why it is passed over.

    {run}/step-000001200-5f3a90c1/
        owner.json          the id of its run, as in run.json, and when it was written
        passed_over.json    the reason why a start continued from an older checkpoint, and from which one

The owner is written before the manifest. The mark is written by a start that continues from an older checkpoint: what
this start found damaged, or leaves behind, must not outrank the checkpoints that are saved from then on. It counts by
its existence, whatever is in it. Older versions of this program ignore both files.

Links in a run's folder may lead to folders of others: nothing is written or deleted behind one.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from data import storage

OWNER = "owner.json"
MARK = "passed_over.json"
RUN = re.compile(r"[0-9a-f]{32}")  # an identity
MOST_OWNER_BYTES = 65_536  # the file has about a hundred


@dataclass(frozen=True)
class Owner:
    """The run that a checkpoint must be of.

    Attributes:
        run: its identity, the `id` of run.json.
        total_steps: its length.
        totals: names of the totals that it counts, `steps` among them. None: any.
    """

    run: str
    total_steps: int
    totals: frozenset[str] | None = None


@dataclass(frozen=True)
class Origin:
    """What `owner.json` says.

    Attributes:
        run: the identity of the run that wrote the checkpoint; None if that is not known.
        written: when, in nanoseconds; 0 if that is not known.
    """

    run: str | None = None
    written: int = 0


def origin_text(run: str | None) -> bytes:
    """The content of `owner.json` for a checkpoint that is written now."""
    return json.dumps({"run": run, "written": time.time_ns()}).encode()


def read_origin(folder: str, sizes: dict[str, int]) -> Origin:
    """What `owner.json` says in a checkpoint's folder with files of these sizes. Older versions wrote no such file.

    Raises:
        ValueError: it is not such a file; the reason in one line, with the file's name.
        Exception: the store's error.
    """
    if OWNER not in sizes:
        return Origin()
    if sizes[OWNER] > MOST_OWNER_BYTES:
        raise ValueError(f"{OWNER}: {sizes[OWNER]} bytes are too many")
    content = storage.read(f"{folder}/{OWNER}")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{OWNER}: damaged ({type(error).__name__})") from error
    run, written = (record.get("run"), record.get("written")) if isinstance(record, dict) else (0, 0)
    if not (run is None or (isinstance(run, str) and RUN.fullmatch(run))) or not isinstance(written, int):
        raise ValueError(f"{OWNER}: damaged (not a run and a time)")
    return Origin(run, written)


def pass_over(folder: str, reason: str, used: str) -> None:
    """Mark a checkpoint: it counts no more, because of `reason`, and the run goes on from the checkpoint `used`.

    Raises:
        Exception: the store's error.
    """
    if not is_link(folder):
        record = {"reason": reason, "continued_from": used}
        storage.write_atomic(f"{folder}/{MARK}", json.dumps(record, indent=1).encode())


def is_link(folder: str) -> bool:
    """Whether a folder on a local disk is a symbolic link."""
    return storage.is_local(folder) and Path(storage.resolve(folder)[1]).is_symlink()
