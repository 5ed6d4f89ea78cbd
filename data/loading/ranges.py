"""Ranged reads of shards: the byte ranges of given samples, and the samples in the bytes that come.

The index has the offset of every `stride`-th sample of a shard, so a read goes from one of these offsets to another. A
range may be of any length if a shard holds very long fields. Then it is read in pieces, and only what is wanted stays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from data import bounds, storage
from data.errors import Cause, DataError, Unreadable
from data.loading.cache import ChecksumError
from data.shards import tar
from data.shards.fields import IMAGE_EXTENSIONS, LABEL_EXTENSIONS
from data.shards.index import Index
from data.storage import patience

READ_BYTES = 16 << 20  # longer ranges are split: several threads share them, and few bytes wait unparsed
GAP_BYTES = 1 << 20  # a shorter unused stretch is read, too: that is cheaper than another request
PIECE_BYTES = 16 << 20  # of one request of a range that is read in pieces
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
        bytes_of = _Bytes(url, read, get, attempt)
        try:
            return _collect(index, read, bytes_of, keep)
        except Unreadable:
            raise
        except (ValueError, IndexError) as error:  # DataError, and the errors of damaged headers
            damage = error
    raise _not_as_indexed(url, read, str(damage)) from damage


class _Bytes:
    """The bytes of a read as a file.

    Attributes:
        is_short: the shard ends before the range, after the bytes that were read.
        ends_early: the bytes end in the middle of an entry.
    """

    def __init__(self, url: str, read: Read, get: Get | None, attempt: int) -> None:
        self._url, self._read, self._get, self._attempt = url, read, get, attempt
        self._position = read.begin
        self.is_short = False
        self.ends_early = False

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end.

        Raises:
            Unreadable: the shard cannot be read, or is not as indexed.
            Abandoned: by `get`.
        """
        begin, end = self._position, min(self._position + size, self._read.end)
        if begin >= end or self.is_short:
            return b""
        url, piece = self._url, replace(self._read, begin=begin, end=end)
        try:
            content = self._get(piece, self._attempt) if self._get else storage.read_range(url, begin, end)
        except FileNotFoundError as error:
            raise _not_as_indexed(url, piece, "there is no such shard") from error
        except ChecksumError as error:
            raise _not_as_indexed(url, piece, str(error)) from error
        except Abandoned:
            raise
        except Exception as error:  # each back end has its own errors
            reason = str(error) if isinstance(error, DataError) else storage.describe(error)
            message = f"{url}: cannot be read ({reason.removeprefix(f'{url}: ')})"
            raise Unreadable(message, away=patience.may_pass(error)) from error
        self._position = end
        self.is_short = len(content) < end - begin
        return content

    def members(self) -> Iterator[tar.Member]:
        """The entries that are whole. A long range is read in pieces."""
        length = self._read.end - self._read.begin
        try:
            yield from tar.read_members(self, length if length <= bounds.SAMPLE_BYTES else PIECE_BYTES)
        except tar.EndsEarly:
            self.ends_early = True


def _collect(
    index: Index, read: Read, bytes_of: _Bytes, keep: frozenset[str] | None
) -> dict[int, Sample | UnreadableSample]:
    """The wanted samples of a read.

    A shard that was cut short before it was indexed ends in the middle of its last sample, which has an id.

    Raises:
        DataError, ValueError, IndexError: the bytes are no tar, or hold another number of samples.
        Unreadable, Abandoned: as `_Bytes.read`.
    """
    url, wanted = index.shard_url(read.shard), read.wanted.tolist()
    samples: dict[int, Sample | UnreadableSample] = dict.fromkeys(wanted, UnreadableSample(url, Cause.CUT_SHORT))
    count, last = 0, None
    for sample in tar.samples(bytes_of.members()):
        if (sample_id := read.first_id + count) in samples:
            fields = {name: bytes(data) for name, data in sample.fields.items() if keep is None or name in keep}
            samples[sample_id] = Sample(sample.key, url, fields)
        count, last = count + 1, sample
    was_cut = bytes_of.ends_early and read.end == index.shards[read.shard].bytes
    if not bytes_of.is_short and count != read.count and not (was_cut and count == read.count - 1):
        raise DataError(f"{count} samples instead of {read.count}")
    is_cut = bytes_of.is_short or (was_cut and count == read.count)
    if is_cut and last is not None and not _is_whole(last, index) and read.first_id + count - 1 in samples:
        samples[read.first_id + count - 1] = UnreadableSample(url, Cause.CUT_SHORT)
    return samples


def _is_whole(last: tar.TarSample, index: Index) -> bool:
    """Whether the last sample of bytes that are cut short has all fields that training uses."""
    fields = last.fields.keys()
    labelled = not fields.isdisjoint(LABEL_EXTENSIONS) or set(index.extensions).isdisjoint(LABEL_EXTENSIONS)
    return labelled and not fields.isdisjoint(IMAGE_EXTENSIONS)


def _not_as_indexed(url: str, read: Read, what: str) -> Unreadable:
    return Unreadable(
        f"{url}: not what was indexed: {what} in bytes {read.begin} to {read.end}; "
        f"restore the shard, or index again with `python -m data pack --index-only {storage.parent(url)}`"
    )
