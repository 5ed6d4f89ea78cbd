"""Notes on a packing that is not finished, from which a killed run continues.

DEST/packing/plan.json holds the source and the options. DEST/packing/NNNNNN.json is written after the tar of that
number and describes its contents. A tar without such a note is not finished, even if its length is right. A note that
is damaged counts as none: its shard is packed again.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data import storage
from data.errors import DataError
from data.packing.source import Skipped, ahead
from data.shards.class_names import CLASSES_NAME
from data.shards.contents import Contents
from data.shards.index import INDEX_NAME, Index, Shard, open_index

FOLDER = "packing"
PLAN = f"{FOLDER}/plan.json"
SKIPPED = "skipped.jsonl"
STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # contents of a file

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A finished shard: its number, its index entry, its contents, and the items that were left out."""

    number: int
    shard: Shard
    contents: Contents = field(default_factory=Contents)
    skipped: list[Skipped] = field(default_factory=list)


def tar_name(number: int) -> str:
    """The file of shard `number`."""
    return f"{number:06d}.tar"


def complete(folder: str, source: str) -> Index | None:
    """The index in `folder`, if it was packed from `source` and all its shards exist; else None.

    Raises:
        DataError: another data set is there.
    """
    if not storage.exists(storage.join(folder, INDEX_NAME)):
        return None
    index = open_index(folder)
    if index.source != source:
        held = f"{index.source!r}" if index.source else "shards of another tool"
        raise DataError(
            f"{folder}: already holds {held}, and this is {source!r}: choose another folder, or replace it with --force"
        )
    lengths = ahead(storage.size, [index.shard_url(number) for number in range(len(index.shards))])
    if any(length != shard.bytes for length, shard in zip(lengths, index.shards, strict=True)):
        return None
    if storage.exists(storage.join(folder, PLAN)):  # the run was killed after it had written the index
        clear(folder)
    return index


def resume(folder: str, plan: dict[str, Any]) -> Iterator[Entry]:
    """The shards in `folder` that an interrupted run of the same plan finished.

    Raises:
        DataError: shards of another run or of another tool are there, or the plan cannot be read.
    """
    try:
        held = json.loads(storage.read(storage.join(folder, PLAN)))
        if not isinstance(held, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        if storage.exists(storage.join(folder, INDEX_NAME)) or not storage.matching(folder, "*.tar"):
            return  # an indexed set of ours with a missing shard, or nothing
        raise DataError(
            f"{folder}: holds .tar files that this program did not pack; choose another folder, "
            f"or index them with `python -m data pack --index-only {folder}`"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"{storage.join(folder, PLAN)}: damaged ({type(error).__name__}), so this packing cannot be continued: "
            "choose another folder, or replace it with --force"
        ) from error
    if differing := [name for name in plan if name != "source" and held.get(name) != plan[name]]:
        raise DataError(
            f"{folder}: holds an interrupted packing that differs in {', '.join(differing)}: complete it with its own "
            "source and options, choose another folder, or replace it with --force"
        )
    names = storage.matching(storage.join(folder, FOLDER), "[0-9]*.json")
    for entry in ahead(_read, [storage.join(folder, f"{FOLDER}/{name}") for name in names]):
        if entry is None or entry.number >= plan["shards"]:
            continue
        if storage.size(storage.join(folder, tar_name(entry.number))) == entry.shard.bytes:
            yield entry


def start(folder: str, plan: dict[str, Any]) -> None:
    """Write the plan into `folder`, and remove everything else that packing writes."""
    clear(folder)
    storage.write_atomic(storage.join(folder, PLAN), json.dumps(plan, indent=1).encode())
    for name in (INDEX_NAME, CLASSES_NAME, SKIPPED, *storage.matching(folder, "*.tar")):
        storage.remove(storage.join(folder, name))


def finish(folder: str, entry: Entry) -> None:
    """Write the note of a shard whose tar is finished."""
    storage.write_atomic(storage.join(folder, f"{FOLDER}/{entry.number:06d}.json"), _to_json(entry))


def clear(folder: str) -> None:
    """Remove the notes."""
    storage.remove_folder(storage.join(folder, FOLDER))


def _to_json(entry: Entry) -> bytes:
    shard, contents = entry.shard, entry.contents
    record = {
        "number": entry.number,
        "shard": vars(shard) | {"offsets": shard.offsets.tolist()},
        "contents": vars(contents) | {"extensions": sorted(contents.extensions)},
        "skipped": entry.skipped,
    }
    return json.dumps(record).encode()


def _read(url: str) -> Entry | None:
    """The note in a file. A damaged one is none, with a warning.

    Raises:
        DataError: a folder is in its place, so that no new note can be written.
    """
    try:
        entry = _from_json(storage.read(url))
        if url.rpartition("/")[2] != f"{entry.number:06d}.json":
            raise ValueError("of another shard")
        return entry
    except IsADirectoryError as error:
        raise DataError(f"{url}: a folder is in the place of this file; move it away") from error
    except (*STRANGE, OSError) as error:
        log.warning("%s: damaged (%s) and left out; its shard is packed again", url, type(error).__name__)
        return None


def _from_json(content: bytes) -> Entry:
    """The note with this content. Raises one of `STRANGE` if it is none."""
    record = json.loads(content)
    stated, found = record["shard"], record["contents"]
    shard = Shard(**(stated | {"offsets": np.array(stated["offsets"], np.int64)}))
    contents = Contents(
        **(
            found
            | {
                "extensions": set(found["extensions"]),
                "label_counts": Counter({int(label): _count(count) for label, count in found["label_counts"].items()}),
            }
        )
    )
    for number in (record["number"], shard.samples, shard.bytes, contents.unlabelled, contents.without_image):
        _count(number)
    if shard.url != tar_name(record["number"]) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise ValueError("no shard of a packing")
    if shard.offsets.ndim != 1 or not all(
        isinstance(text, str) for text in [*contents.extensions, *contents.cut_short]
    ):
        raise ValueError("no contents of a shard")
    return Entry(record["number"], shard, contents, [_skipped(one) for one in record["skipped"]])


def read_skipped(url: str) -> list[Skipped]:
    """What a complete packing left out, from its skipped.jsonl. A damaged line is left out, with a warning."""
    found: list[Skipped] = []
    try:
        lines = storage.read(url).splitlines()
    except OSError as error:
        log.warning("%s: cannot be read (%s), so what was skipped is not counted", url, type(error).__name__)
        return found
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_skipped(json.loads(line)))
        except STRANGE as error:
            log.warning("%s: line %d is damaged (%s) and left out", url, number, type(error).__name__)
    return found


def _skipped(fields: Any) -> Skipped:
    """What was left out, from its fields, in order or by name. Raises one of `STRANGE` if it is none."""
    one = Skipped(**fields) if isinstance(fields, dict) else Skipped(*fields)
    if not isinstance(one.key, str) or not isinstance(one.reason, str):
        raise ValueError("no key and reason")
    _count(one.things)
    return one


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{number!r:.40} is no count")
    return number
