"""Exclusion lists: samples of a data set that training leaves out, as `python -m data dedup` finds them.

A list is a file of its own; the index and the sample ids do not change. It holds the index's digest, so that it is
refused for another data set, or another packing of the same one: there the ids mean other images.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data import storage
from data.errors import DataError
from data.shards.index import Index

FORMAT = "vit-at-scale/exclusions"
VERSION = 1


class Excluded(NamedTuple):
    """A sample to leave out, and the test image of which it is a near-duplicate.

    Attributes:
        id: of the sample.
        key, shard: the names of the same sample.
        against: number of the test set in the list's head.
        test_id, test_key, test_shard: the test image.
        distance: bits that differ in their perceptual hashes.
        likeness: similarity of their details, at most 1.
    """

    id: int
    key: str
    shard: str
    against: int
    test_id: int
    test_key: str
    test_shard: str
    distance: int
    likeness: float


def write_exclusions(
    url: str,
    index: Index,
    found: Sequence[Excluded],
    *,
    against: Sequence[Mapping[str, object]] = (),
    method: Mapping[str, object] | None = None,
    unread: Sequence[str] = (),
) -> None:
    """Write a list for `index` at `url`, whole or not at all, one line a sample.

    Args:
        against: the test sets, each with its "url" and "digest".
        method: parameters of the search.
        unread: shards that could not be compared. If there are any, the list is not complete.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "index": {"url": index.url, "digest": index.digest, "num_samples": index.num_samples},
        "against": list(against),
        "method": dict(method or {}),
        "unread": list(unread),
    }
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    samples = ",\n".join(f"    {json.dumps(one._asdict())}" for one in sorted(found))
    text = "\n".join(["{", *lines, '  "samples": [', *([samples] if samples else []), "  ]", "}", ""])
    storage.write_atomic(url, text.encode())


def open_exclusions(url: str, index: Index) -> np.ndarray:
    """The ids to leave out of `index`: int64, ascending, without repeats.

    Raises:
        DataError: there is no file, it is no exclusion list, or it is one for another data set.
    """
    place = storage.absolute(url)
    with storage.reporting(url):
        try:
            content = storage.read(place)
        except FileNotFoundError as error:
            advice = f"`python -m data dedup {storage.parent(index.url)} --against URL --out {url}` makes it"
            raise DataError(f"{url}: no such exclusion list; {advice}") from error
    try:
        record = json.loads(content)
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise ValueError(f"not {FORMAT} version {VERSION}")
        digest = str(record["index"]["digest"])
        ids = np.unique(np.array([operator.index(sample["id"]) for sample in record["samples"]], np.int64))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{url}: not a readable exclusion list ({reason})") from error
    if digest != index.digest:
        raise DataError(
            f"{url}: made for another data set (with the digest {digest[:12]}; that of {storage.parent(index.url)} is "
            f"{index.digest[:12]}); run `python -m data dedup` on this one"
        )
    if len(ids) and not 0 <= ids[0] <= ids[-1] < index.num_samples:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise DataError(f"{url}: excludes sample {wrong} of a data set of {index.num_samples}")
    return ids
