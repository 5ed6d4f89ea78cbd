"""Notes on a packing that is not finished, from which a killed run continues.

DEST/packing/plan.json holds the source and the options. DEST/packing/NNNNNN.json is written after the tar of that
number and describes its contents. A tar without such a note is not finished, even if its length is right.
"""

import json
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
        DataError: shards of another run or of another tool are there.
    """
    try:
        held = json.loads(storage.read(storage.join(folder, PLAN)))
    except FileNotFoundError:
        if storage.exists(storage.join(folder, INDEX_NAME)) or not storage.matching(folder, "*.tar"):
            return  # an indexed set of ours with a missing shard, or nothing
        raise DataError(
            f"{folder}: holds .tar files that this program did not pack; choose another folder, "
            f"or index them with `python -m data pack --index-only {folder}`"
        ) from None
    if differing := [name for name in plan if name != "source" and held.get(name) != plan[name]]:
        raise DataError(
            f"{folder}: holds an interrupted packing that differs in {', '.join(differing)}: complete it with its own "
            "source and options, choose another folder, or replace it with --force"
        )
    names = storage.matching(storage.join(folder, FOLDER), "[0-9]*.json")
    for content in ahead(storage.read, [storage.join(folder, f"{FOLDER}/{name}") for name in names]):
        entry = _from_json(content)
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


def _from_json(content: bytes) -> Entry:
    record = json.loads(content)
    shard = Shard(**(record["shard"] | {"offsets": np.array(record["shard"]["offsets"], np.int64)}))
    found = record["contents"]
    contents = Contents(
        **(
            found
            | {
                "extensions": set(found["extensions"]),
                "label_counts": Counter({int(label): count for label, count in found["label_counts"].items()}),
            }
        )
    )
    return Entry(record["number"], shard, contents, [Skipped(*one) for one in record["skipped"]])
