"""Writing shards, and measuring shards that others wrote: both end in the `Shard` entries of an index."""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Self

import numpy as np

from data import storage
from data.errors import BadSample, DataError
from data.shards import tar
from data.shards.fields import IMAGE_EXTENSIONS, Labels, labels
from data.shards.index import STRIDE, Index, Shard

SCAN_BYTES = 8 << 20
HEADER_BYTES = 64 << 10  # more than a header and the long-name records before it


@dataclass
class Contents:
    """What the samples seen so far hold, for the index's head. Contents of several shards add up.

    Attributes:
        multi_label: whether some sample's labels are written as a list.
        extensions: all fields seen.
        unlabelled: samples without labels that can be read.
        without_image: samples without an image field.
        label_counts: images that carry each label.
        cut_short: URLs of shards that end in the middle of an entry.
    """

    multi_label: bool = False
    extensions: set[str] = field(default_factory=set)
    unlabelled: int = 0
    without_image: int = 0
    label_counts: Counter[int] = field(default_factory=Counter)
    cut_short: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return max(self.label_counts, default=-1) + 1

    def add(self, fields: Mapping[str, bytes | memoryview]) -> None:
        self.extensions.update(fields)
        self.without_image += not any(extension in fields for extension in IMAGE_EXTENSIONS)
        try:
            found: Labels = labels(fields)
        except BadSample:
            self.unlabelled += 1
            return
        self.label_counts.update(set(found.classes))
        self.multi_label |= found.is_list

    def update(self, other: "Contents") -> None:
        self.multi_label |= other.multi_label
        self.extensions |= other.extensions
        self.unlabelled += other.unlabelled
        self.without_image += other.without_image
        self.label_counts += other.label_counts
        self.cut_short += other.cut_short


def contents_index(url: str, shards: Sequence[Shard], contents: Contents, source: str, num_classes: int = 0) -> Index:
    """The index of shards with these contents. `num_classes` 0 means the largest label + 1; labels beyond the classes
    are not in its counts."""
    num_classes = num_classes or contents.num_classes
    return Index(
        url=url,
        shards=tuple(shards),
        num_classes=num_classes,
        multi_label=contents.multi_label,
        extensions=tuple(sorted(contents.extensions)),
        source=source,
        label_counts={label: count for label, count in sorted(contents.label_counts.items()) if label < num_classes},
    )


class ShardWriter:
    """Writes one tar, streaming, and knows its index entry at the end.

    The bytes depend on the samples alone: times, owners and modes are fixed. Names that ustar cannot hold get pax
    records. A context manager; leaving it by an exception may leave an incomplete tar behind. All of it raises
    DataError where the tar cannot be written.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._name = name
        self._url = storage.join(folder, name)
        with storage.reporting(self._url):
            self._file = storage.open_write(self._url)
        self._hash = hashlib.sha256()
        self._length = 0
        self._samples = 0
        self._offsets: list[int] = []

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add a sample: its fields become members `key.extension`, in the given order."""
        if self._samples % STRIDE == 0:
            self._offsets.append(self._length)
        for extension, content in fields.items():
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(content)
            self._put(header.tobuf(tarfile.PAX_FORMAT))
            self._put(content)
            self._put(bytes(-len(content) % tar.RECORD))
        self._samples += 1

    def close(self) -> Shard:
        """End the archive and return its index entry."""
        self._put(bytes(2 * tar.RECORD))
        with storage.reporting(self._url):
            self._file.close()
        offsets = np.array(self._offsets, np.int64)
        return Shard(self._name, self._samples, self._length, self._hash.hexdigest(), offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _put(self, content: bytes) -> None:
        with storage.reporting(self._url):
            self._file.write(content)
        self._hash.update(content)
        self._length += len(content)


def scan_shard(folder: str, name: str) -> tuple[Shard, Contents]:
    """Read one tar from end to end: its index entry, and what its samples hold.

    A tar that is cut short counts its complete samples, and as one more the sample in whose middle it ends: that one's
    id exists and its slot will be masked, so that the shards after it keep their ids. A piece of a header names no
    sample and counts as nothing.

    Raises:
        DataError: it is not a plain tar, or it cannot be read.
        FileNotFoundError: there is none.
    """
    url = storage.join(folder, name)
    contents, offsets, count = Contents(), [], 0
    with storage.reporting(url), storage.open_read(url, SCAN_BYTES) as file:
        hashed = Hashed(file)
        found = _Members(hashed)
        try:
            for sample in tar.samples(found):
                if count % STRIDE == 0:
                    offsets.append(sample.offset)
                contents.add(sample.fields)
                count += 1
        except DataError as error:
            raise DataError(f"{url}: not a readable tar: {error}") from error
        if found.cut_short:
            contents.cut_short.append(url)
            last = storage.read_range(url, found.end, min(found.end + HEADER_BYTES, hashed.length))
            if (key := _key_of_first(last)) and key != found.key:
                if count % STRIDE == 0:
                    offsets.append(found.end)
                count += 1
    return Shard(name, count, hashed.length, hashed.sha256.hexdigest(), np.array(offsets, np.int64)), contents


class _Members:
    """The complete members of a tar.

    Attributes, after the iteration:
        cut_short: whether the file ends in the middle of an entry.
        end: where the last complete member ends.
        key: of the last complete member that belongs to a sample.
    """

    def __init__(self, file: "Hashed") -> None:
        self._file = file
        self.cut_short = False
        self.end = 0
        self.key: str | None = None

    def __iter__(self) -> Iterator[tar.Member]:
        try:
            for member in tar.read_members(self._file, SCAN_BYTES):
                self.end = member.end
                if member.is_file and (split := tar.split_name(member.name)):
                    self.key = split[0]
                yield member
        except DataError:
            if not self._file.ended:
                raise  # the bytes are not a tar's
            self.cut_short = True


def _key_of_first(content: bytes) -> str | None:
    """Sample key of the member whose header, with the records that precede it, `content` begins with; None if it is not
    whole or no sample's."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            member = next(iter(archive), None)
    except tarfile.TarError:
        return None
    split = tar.split_name(member.name) if member is not None and member.isreg() else None
    return split[0] if split else None


class Hashed:
    """A file that is read once, its length and SHA-256 kept along the way, and whether its end was reached."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.length = 0
        self.ended = False

    def read(self, size: int, /) -> bytes:
        content = self._file.read(size)
        self.ended = not content
        self.sha256.update(content)
        self.length += len(content)
        return content
