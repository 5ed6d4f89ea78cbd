"""An index for existing WebDataset shards: `python -m data pack --index-only`."""

import hashlib
import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import numpy as np
from braceexpand import braceexpand

from data import storage
from data.errors import DataError
from data.packing import label_survey
from data.ray_session import session
from data.shards import tar
from data.shards.contents import Contents, contents_index
from data.shards.fields import IMAGE_EXTENSIONS
from data.shards.index import INDEX_NAME, STRIDE, Index, Shard, write_index
from data.shards.label_rule import CLEAR, NAME, ONE_HOT, LabelRule
from data.version import VERSION

SCAN_BYTES = 8 << 20  # one read of a tar that is read from end to end
HEADER_BYTES = 64 << 10  # more than a header and the long-name records before it


def index_shards(
    url: str,
    *,
    workers: int = 1,
    num_classes: int = 0,
    rule: LabelRule = CLEAR,
    class_names: Sequence[str] = (),
    must_have_labels: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Index, Contents]:
    """Scan existing WebDataset tars and write `index.json` in their common folder.

    Args:
        url: a folder (all *.tar in it), a tar, or a pattern with braces or stars: train-{0000..0099}.tar. A folder or a
            file of that very name is no pattern. The order of the shards, and so the sample ids, is that of the braces,
            or else of the names.
        workers: number of tars that are scanned at a time; more than one are scanned on Ray.
        num_classes: number of classes: samples with larger labels will be masked. 0: as many as there are names, or as
            one-hot lists are long, or else the largest label + 1.
        rule: how the labels are read.
        class_names: by class number. Empty: for labels that are names, those that are found, in sorted order.
        must_have_labels: it is an error if no sample has a readable label.
        about: further notes for the index.
        progress: called with (shards done, shards in all).

    Raises:
        DataError: there are no tars, there are no images in them, no labels can be read, or a tar cannot be read.
    """
    if rule.kind == NAME:
        rule = replace(rule, class_names=tuple(class_names))
    elif rule.kind == ONE_HOT:
        rule = replace(rule, classes=num_classes or len(class_names) or rule.classes)
    with storage.reporting(url):
        folder, names = find_shards(url)
    found: dict[int, Shard] = {}
    total = Contents()
    with session(min(workers, len(names))) as runner:
        calls = [(folder, name, number, rule) for number, name in enumerate(names)]
        for number, shard, contents in runner(_scan_numbered, calls):
            found[number] = shard
            total.update(contents)
            label_survey.check_names(url, total)
            progress(len(found), len(names))
    total.cut_short.sort()
    shards = [found[number] for number in range(len(names))]
    samples = sum(shard.samples for shard in shards)
    if total.without_image == samples:
        raise DataError(
            f"{url}: no sample has an image field ({', '.join(IMAGE_EXTENSIONS)}); found: "
            f"{', '.join(sorted(total.extensions)) or 'nothing'}"
        )
    if must_have_labels:
        label_survey.check_labelled(url, total)
    rule, class_names = label_survey.concluded(url, total, rule, class_names)
    index = contents_index(
        storage.join(folder, INDEX_NAME),
        shards,
        total,
        source="",
        num_classes=num_classes or len(class_names) or rule.classes,
        rule=rule,
        class_names=class_names,
        about={"packed_by": VERSION} | dict(about or {}),
    )
    write_index(index)
    return index, total


def find_shards(url: str) -> tuple[str, list[str]]:
    """The common folder of all shards of `url`, and their names in it, in order.

    Raises:
        DataError: there are none, or they have no folder in common.
    """
    url = storage.absolute(url)
    if "{" in url and not _is_there(url):
        urls = _expand_braces(url)
    elif "*" in url and not _is_there(url):
        folder = storage.parent(url)
        urls = [storage.join(folder, name) for name in storage.matching(folder, posixpath.basename(url))]
    elif url.endswith(".tar") and not storage.is_folder(url):
        urls = [url]
    else:
        urls = [storage.join(url, name) for name in storage.matching(url, "*.tar")]
    if not urls:
        raise DataError(f"{url}: no .tar files there (compressed ones cannot be read from the middle: decompress them)")
    folder = storage.parent(urls[0])
    while not all(other.startswith(f"{folder}/") for other in urls):
        if storage.parent(folder) == folder:
            raise DataError(f"{url}: the shards have no common folder for their index")
        folder = storage.parent(folder)
    return folder, [other[len(folder) + 1 :] for other in urls]


def _expand_braces(url: str) -> list[str]:
    """Every URL of a pattern with braces. A folder whose name has the braces itself is no pattern."""
    parts = url.split("/")
    first = next(number for number, part in enumerate(parts) if "{" in part)
    while "{" in parts[first] and _is_there("/".join(parts[: first + 1])):
        first += 1
    folder = "/".join(parts[:first])
    try:
        return [f"{folder}/{rest}" for rest in braceexpand("/".join(parts[first:]))]
    except ValueError as error:
        raise DataError(f"{url}: the braces do not match") from error


def _is_there(url: str) -> bool:
    """Whether a file or a folder has the name `url`. No bucket has a name with braces or stars."""
    bucket = url.partition("://")[2].partition("/")[0]
    return not any(sign in bucket for sign in "{*") and storage.exists(url)


def scan_shard(folder: str, name: str, rule: LabelRule = CLEAR) -> tuple[Shard, Contents]:
    """Read one tar from start to end: its index entry, and the counts over its samples.

    In a tar that is cut short, its complete samples count, and so does the one in whose middle it ends: that sample has
    an id and its slot will be masked, so that the ids after it are right. A part of a header does not count.

    Raises:
        DataError: it is not a plain tar, or it cannot be read.
        FileNotFoundError: there is no such file.
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
                contents.add(sample.fields, rule)
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
    """The sample key of the member at the start of `content`, which begins with its header and the records before it.

    None if the header is not whole, or if the member belongs to no sample.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            member = next(iter(archive), None)
    except tarfile.TarError:
        return None
    split = tar.split_name(member.name) if member is not None and member.isreg() else None
    return split[0] if split else None


class Hashed:
    """A file that is read once. It keeps the length and SHA-256 of what was read, and whether the end was reached."""

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


def _scan_numbered(folder: str, name: str, number: int, rule: LabelRule) -> tuple[int, Shard, Contents]:
    shard, contents = scan_shard(folder, name, rule)
    return number, shard, contents
