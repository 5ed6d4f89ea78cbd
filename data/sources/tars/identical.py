"""Identical images become one sample with the classes of all of them. So no copy of a held-out image can stay in train.

Two images are identical if their bytes are. One pass over the tars writes the SHA-256 of every image into DEST/digests,
a file for each part of the listing: 32 bytes an image, 454 MB for the 14.2 million of ImageNet-21k. A start after a
cut-off reads only what is missing, and a start after the end reads no image at all.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data import storage
from data.errors import BadSample, DataError
from data.packing import notes
from data.packing.source import ahead, image_field
from data.progress import Progress
from data.ray_session import Calls, Runner
from data.shards.index import INDEX_NAME, open_index
from data.sources.class_tars import TarImages, read_places
from data.sources.tars.members import is_hidden

FOLDER = "digests"
PLAN = "plan.json"
PART = 1 << 14  # images whose digests are in one file
SIZE = 32  # bytes of a digest
NONE = bytes(SIZE)  # instead of the digest of what is no image, which stays for itself
ADVICE = "choose another folder, or replace it with --force"


def check_merging(dest: str, splits: Sequence[str], name: str, other: str, advice: str) -> None:
    """Check that no split in `dest` is packed, or begun, with the other choice of merging.

    Args:
        name: of this source in an index, without the split, such as "imagenet21k".
        other: of the source with the other choice.
        advice: what to do about it.

    Raises:
        DataError: one is, or it holds another set.
    """
    for split in splits:
        folder = storage.join(storage.absolute(dest), split)
        held = _held(folder)
        if held is not None and held.startswith(f"{other}/"):
            raise DataError(f"{folder}: {advice}, {ADVICE}")
        if held is not None and not held.startswith(f"{name}/"):
            raise DataError(f"{folder}: already holds {held or 'shards of another tool'}: {ADVICE}")


def read_digests(dest: str, source: TarImages, runner: Runner, *, force: bool = False) -> np.ndarray:
    """SHA-256 of each image of `source`, uint8 (n, 32); zeros for what is no image. DEST/digests holds them, too.

    Args:
        force: replace the digests of other images.

    Raises:
        DataError: digests of other images are there, or a tar cannot be read.
    """
    folder = storage.join(storage.absolute(dest), FOLDER)
    plan = {"listing": source.fingerprint, "images": len(source), "part": PART}
    _begin(folder, plan, force)
    count = -(-len(source) // PART)
    sizes = [min(PART, len(source) - number * PART) for number in range(count)]
    urls = [storage.join(folder, _part_name(number)) for number in range(count)]
    missing = [
        number
        for number, (size, there) in enumerate(zip(sizes, ahead(storage.size, urls), strict=True))
        if there != size * SIZE
    ]

    def call(number: int) -> tuple[Any, ...]:
        return urls[number], number, *source.places(np.arange(number * PART, number * PART + sizes[number]))

    todo = sum(sizes[number] for number in missing)
    if missing:
        with Progress("comparing images", "images", len(source), len(source) - todo) as progress:
            for number in runner(_write_part, Calls(call, missing)):
                progress.advance(sizes[number])
    contents = b"".join(ahead(storage.read, urls))
    if len(contents) != len(source) * SIZE:
        raise DataError(f"{folder}: holds {len(contents):,} bytes of digests instead of {len(source) * SIZE:,}")
    return np.frombuffer(contents, np.uint8).reshape(-1, SIZE)


def merged(name: str, source: TarImages, digests: np.ndarray) -> TarImages:
    """The distinct images of `source`, each where its first copy stands, with the classes of all copies."""
    words = digests.view("<u8").reshape(len(digests), -1)
    order = np.lexsort(words.T)  # copies are neighbours, in the order of the listing
    ordered = words[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1) | ~ordered[1:].any(1)
    begins = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    copies = np.diff(np.append(begins, len(order)))

    label = source.images["label"].to_numpy()[order]
    by_label = np.lexsort([label, group])
    group, label = group[by_label], label[by_label]
    different = np.ones(len(order), bool)
    different[1:] = (group[1:] != group[:-1]) | (label[1:] != label[:-1])
    ends = np.cumsum(np.bincount(group[different], minlength=len(begins)))
    labels = pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), label[different])

    first = order[begins]
    place = np.argsort(first)
    images = source.images.take(first[place])
    images = images.append_column("labels", labels.take(pa.array(place))).append_column("copies", [copies[place]])
    return source.of(name, images, source.skipped)


def _held(folder: str) -> str | None:
    """The source of the set in a folder, or of the packing that was begun there; None if there is neither."""
    if storage.exists(storage.join(folder, INDEX_NAME)):
        return open_index(folder).source
    try:
        return f"{json.loads(storage.read(storage.join(folder, notes.PLAN)))['name']}/"
    except FileNotFoundError:
        return None


def _begin(folder: str, plan: dict[str, object], force: bool) -> None:
    """Write the plan, unless it is there.

    Raises:
        DataError: another plan is there.
    """
    url = storage.join(folder, PLAN)
    try:
        held = json.loads(storage.read(url))
    except FileNotFoundError:
        held = None
    if held == plan:
        return
    if held is not None and not force:
        raise DataError(f"{folder}: holds the digests of other images: {ADVICE}")
    storage.remove_folder(folder)
    storage.write_atomic(url, json.dumps(plan, indent=1).encode())


def _part_name(number: int) -> str:
    return f"{number:06d}.sha256"


def _write_part(url: str, number: int, names: list[str], places: list[tuple[str, int, int]]) -> int:
    """Read some images and write their digests. It runs in any process."""
    contents = read_places(names, places)
    digests = [
        NONE if content is None or is_hidden(name) or not _is_image(content) else hashlib.sha256(content).digest()
        for name, content in zip(names, contents, strict=True)
    ]
    with storage.reporting(url):
        storage.write_atomic(url, b"".join(digests))
    return number


def _is_image(content: bytes) -> bool:
    try:
        image_field(content)
    except BadSample:
        return False
    return True
