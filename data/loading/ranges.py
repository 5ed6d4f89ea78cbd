"""Ranged reads of shards: the byte ranges of given samples, and the samples in the bytes that come.

The index has the offset of every `stride`-th sample of a shard, so a read goes from one of these offsets to another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data import storage
from data.errors import Cause, DataError, Unreadable
from data.loading.cache import ChecksumError
from data.shards import tar
from data.shards.fields import IMAGE_EXTENSIONS, LABEL_EXTENSIONS
from data.shards.index import Index
from data.storage import patience

READ_BYTES = 16 << 20  # longer ranges are split: several threads share them, and few bytes wait unparsed
GAP_BYTES = 1 << 20  # a shorter unused stretch is read, too: that is cheaper than another request
PARSE_TRIES = 3  # reads of a range whose bytes are no tar: the answer may be damaged, not the shard
KEPT_FIELDS = frozenset(IMAGE_EXTENSIONS + LABEL_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded sample: its key, its shard's URL, and the bytes of its image and label fields."""

    key: str
    shard: str
    fields: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class UnreadableSample:
    """A sample that cannot be read: its shard's URL, and `Cause.CUT_SHORT` or `Cause.UNREADABLE`."""

    shard: str
    cause: str


class Abandoned(Exception):
    """The samples are no longer needed."""


@dataclass(frozen=True, eq=False)
class Read:
    """One ranged read.

    Attributes:
        shard: number of the shard.
        begin, end: bytes of the shard, from one coarse offset to another.
        first_id: sample id of the first sample in the range.
        count: samples in the range.
        wanted: int64, the ids to keep, ascending.
    """

    shard: int
    begin: int
    end: int
    first_id: int
    count: int
    wanted: np.ndarray


def plan_reads(index: Index, ids: np.ndarray, among: np.ndarray | None = None, longest: int = READ_BYTES) -> list[Read]:
    """The ranged reads that bring the samples `ids` (int64, ascending), in storage order.

    Args:
        among: int64, ascending: of the samples in the ranges, these are kept. Default: `ids`.
        longest: most bytes of a read, unless a single stride group has more.
    """
    reads: list[Read] = []
    kept = ids if among is None else among
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    for number in np.unique(shards):
        shard = index.shards[number]
        start = int(index.starts[number])
        edges = np.append(shard.offsets, shard.bytes)  # byte range of stride group g: edges[g] .. edges[g+1]
        for first, last in _spans(np.unique((ids[shards == number] - start) // index.stride), edges, longest):
            low, high = first * index.stride, min(last * index.stride, shard.samples)
            wanted = kept[np.searchsorted(kept, start + low) : np.searchsorted(kept, start + high)]
            reads.append(Read(int(number), int(edges[first]), int(edges[last]), start + low, high - low, wanted))
    return reads


def _spans(groups: np.ndarray, edges: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Join stride groups (ascending) into ranges (first, last + 1) over short gaps; split long ranges."""
    spans: list[tuple[int, int]] = []
    for group in groups.tolist():
        if spans:
            first, end = spans[-1]
            if edges[group] - edges[end] <= GAP_BYTES and edges[group + 1] - edges[first] <= longest:
                spans[-1] = (first, group + 1)
                continue
        spans.append((group, group + 1))
    return spans


Get = Callable[[Read, int], bytes]  # (read, number of the try from 0) -> the bytes of its range


def fetch(
    index: Index,
    read: Read,
    get: Get | None = None,
    tries: int = PARSE_TRIES,
    keep: frozenset[str] | None = KEPT_FIELDS,
) -> dict[int, Sample | UnreadableSample]:
    """Carry out one read: sample id -> sample. Its bytes are copied, so that the rest of the range is freed.

    If the shard ends before the range, the samples that are whole are returned; the others are `UnreadableSample`.

    Args:
        get: returns the bytes, fewer if the shard ends earlier. Default: from the shard's URL.
        tries: most reads of a range whose bytes are not as indexed.
        keep: names of the fields to keep; None keeps all.

    Raises:
        Unreadable: the shard cannot be read, or is not as indexed.
        Abandoned: by `get`.
    """
    url = index.shard_url(read.shard)
    for attempt in range(tries):
        try:
            content = get(read, attempt) if get else storage.read_range(url, read.begin, read.end)
        except FileNotFoundError as error:
            raise _not_as_indexed(url, read, "there is no such shard") from error
        except ChecksumError as error:
            raise _not_as_indexed(url, read, str(error)) from error
        except Abandoned:
            raise
        except Exception as error:  # each back end has its own errors
            message = f"{url}: cannot be read ({storage.describe(error)})"
            raise Unreadable(message, away=patience.may_pass(error)) from error
        try:
            return _parse(index, read, content, keep)
        except (ValueError, IndexError) as error:  # DataError, and the errors of damaged headers
            damage = error
    raise _not_as_indexed(url, read, str(damage)) from damage


def _parse(
    index: Index, read: Read, content: bytes, keep: frozenset[str] | None
) -> dict[int, Sample | UnreadableSample]:
    """The wanted samples of a read, from its bytes.

    Raises:
        DataError, ValueError, IndexError: the bytes are no tar, or hold another number of samples.
    """
    found = list(tar.samples(tar.members(content)))
    url = index.shard_url(read.shard)
    if len(content) < read.end - read.begin:
        found = _whole(found, index)
    elif len(found) != read.count:
        raise DataError(f"{len(found)} samples instead of {read.count}")
    samples: dict[int, Sample | UnreadableSample] = {}
    for sample_id in read.wanted.tolist():
        place = sample_id - read.first_id
        if place >= len(found):
            samples[sample_id] = UnreadableSample(url, Cause.CUT_SHORT)
            continue
        sample = found[place]
        fields = {name: bytes(data) for name, data in sample.fields.items() if keep is None or name in keep}
        samples[sample_id] = Sample(sample.key, url, fields)
    return samples


def _whole(found: list[tar.TarSample], index: Index) -> list[tar.TarSample]:
    """Samples from bytes that are cut short: without the last one, unless it has all fields that training uses."""
    if not found:
        return found
    fields = found[-1].fields.keys()
    labelled = not fields.isdisjoint(LABEL_EXTENSIONS) or set(index.extensions).isdisjoint(LABEL_EXTENSIONS)
    return found if labelled and not fields.isdisjoint(IMAGE_EXTENSIONS) else found[:-1]


def _not_as_indexed(url: str, read: Read, what: str) -> Unreadable:
    return Unreadable(
        f"{url}: not what was indexed: {what} in bytes {read.begin} to {read.end}; "
        f"restore the shard, or index again with `python -m data pack --index-only {storage.parent(url)}`"
    )
