"""Checks of the shards against their index: every byte, every entry, every label, and on demand every pixel.

A shard is read once, from start to end. SHA-256 shows whether any bit differs from the indexed shard. The other checks
say what is wrong. They also find faults that were there when the index was made: keys that come twice, samples without
an image, labels that cannot be read or are outside the classes. So they run even if the checksum is right.
"""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO

import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError
from data.images.decode import decode
from data.packing.scan import SCAN_BYTES, Hashed
from data.parallel import spread
from data.shards import tar
from data.shards.fields import image_bytes
from data.shards.index import Index, Shard
from data.shards.label_rule import CLEAR, LabelRule

NAMED_SAMPLES = 10  # of each kind of fault in a shard are named; the rest are counted


@dataclass(frozen=True)
class Fault:
    """A fault: the name of the shard or of the index file, and a description."""

    shard: str
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}"


@dataclass
class Checked:
    """The result of checking one shard.

    Attributes:
        faults: descriptions of what is wrong.
        samples, bytes: numbers of those that could be read.
        sha256: of the bytes, or "" if the shard could not be read.
        label_counts: images of each label inside the classes.
        keys: 64 bits of the hash of each sample's key, uint64 (samples,), if they were asked for.
    """

    faults: list[str] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    label_counts: Counter[int] = field(default_factory=Counter)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))


@dataclass(frozen=True)
class _Task:
    url: str
    shard: Shard
    stride: int


@dataclass(frozen=True)
class _Rules:
    labels: LabelRule
    num_classes: int
    multi_label: bool
    decode: bool
    keys: bool


def verify(
    index: Index, *, decode: bool = False, workers: int = 1, keys: bool = False
) -> Iterator[tuple[str, Checked]]:
    """Check every shard of `index`: (its name, the result), in the index's order.

    Args:
        decode: also decode every image.
        workers: number of processes.
        keys: also return the hashes of all keys: 8 bytes a sample.
    """
    tasks = [_Task(index.shard_url(number), shard, index.stride) for number, shard in enumerate(index.shards)]
    rules = _Rules(index.label_rule(), index.num_classes, index.multi_label, decode, keys)
    names = (shard.url for shard in index.shards)
    if index.url.startswith("memory://"):
        workers = 1  # other processes have a memory of their own
    yield from zip(names, spread(partial(_check_shard, rules), tasks, workers), strict=True)


def faults_of_the_whole(index: Index, found: Mapping[str, str], label_counts: Counter[int]) -> list[Fault]:
    """Faults that no shard shows alone: shards that are listed twice, tars that are not in the index, shards with each
    other's contents, wrong label counts. Unlisted tars are searched only if the file system can list: https cannot.

    Args:
        found: the checksums that `verify` found, by shard name.
        label_counts: the sum of those that `verify` found.
    """
    return [
        *_listed_twice(index),
        *_swapped(index, found),
        *(Fault(name, "not in the index") for name in _unlisted(index)),
        *_wrong_counts(index, label_counts),
    ]


def _listed_twice(index: Index) -> Iterator[Fault]:
    for name, times in Counter(shard.url for shard in index.shards).items():
        if times > 1:
            yield Fault(name, f"listed {times} times in the index")
    first: dict[str, str] = {}
    for shard in index.shards:
        if shard.samples and first.setdefault(shard.sha256, shard.url) != shard.url:
            yield Fault(shard.url, f"indexed with the same content as {first[shard.sha256]}: its samples come twice")


def _swapped(index: Index, found: Mapping[str, str]) -> Iterator[Fault]:
    indexed_as = {shard.sha256: shard.url for shard in index.shards}
    for shard in index.shards:
        if found[shard.url] != shard.sha256 and found[shard.url] in indexed_as:
            yield Fault(shard.url, f"has the content that was indexed as {indexed_as[found[shard.url]]}")


def _unlisted(index: Index) -> list[str]:
    """Names of the tars in the folders of the index and of its shards that the index does not list."""
    home = storage.parent(index.url)
    listed = {index.shard_url(number) for number in range(len(index.shards))}
    folders = {home, *(storage.parent(url) for url in listed)}
    there = {
        storage.join(folder, name)
        for folder in folders
        if not folder.startswith(("http://", "https://"))
        for name in storage.matching(folder, "*.tar")
    }
    return sorted(url.removeprefix(f"{home}/") for url in there - listed)


def _wrong_counts(index: Index, found: Counter[int]) -> Iterator[Fault]:
    if not index.label_counts:
        return  # this index has no counts
    wrong = [
        f"class {label}: {index.label_counts.get(label, 0)} images in the index, {found[label]} in the shards"
        for label in sorted(index.label_counts.keys() | found.keys())  # the classes of an index are only a claim
        if index.label_counts.get(label, 0) != found[label]
    ]
    yield from (Fault(posixpath.basename(index.url), line) for line in _some(wrong, "classes with wrong counts"))


def _check_shard(rules: _Rules, task: _Task) -> Checked:
    """Read one shard and compare it with its entry of the index."""
    checked = Checked()
    try:
        with storage.reporting(task.url), storage.open_read(task.url, SCAN_BYTES) as file:
            _read_shard(file, rules, task, checked)
    except FileNotFoundError:
        checked.faults.append("missing")
    except DataError as error:
        checked.faults.append(str(error).removeprefix(f"{task.url}: "))
    return checked


def _read_shard(file: IO[bytes], rules: _Rules, task: _Task, checked: Checked) -> None:
    hashed = Hashed(file)
    offsets: list[int] = []
    samples = _Samples(rules, checked)
    unreadable = ""
    try:
        for sample in tar.samples(samples.watch(tar.read_members(hashed, SCAN_BYTES))):
            if checked.samples % task.stride == 0:
                offsets.append(sample.offset)
            checked.samples += 1
            samples.check(sample)
    except (DataError, ValueError) as error:  # ValueError: a header whose numbers cannot be parsed
        unreadable = f"not a readable tar after {checked.samples} samples: {error}"
    while hashed.read(SCAN_BYTES):  # to the end of the file, for the checksum
        pass
    checked.bytes, checked.sha256 = hashed.length, hashed.sha256.hexdigest()
    shard = task.shard
    if checked.bytes != shard.bytes:
        checked.faults.append(f"{checked.bytes} bytes instead of {shard.bytes}")
    elif checked.sha256 != shard.sha256:
        checked.faults.append(f"SHA-256 is {checked.sha256} instead of {shard.sha256}")
    if unreadable:
        checked.faults.append(unreadable)
    if checked.samples != shard.samples:
        checked.faults.append(f"{checked.samples} samples instead of {shard.samples}")
    for number, (found, indexed) in enumerate(zip(offsets, shard.offsets.tolist(), strict=False)):
        if found != indexed:
            checked.faults.append(f"sample {number * task.stride} begins at byte {found}, the index says {indexed}")
            break  # all following offsets are shifted, too
    checked.faults += samples.faults()
    checked.keys = np.frombuffer(bytes(samples.key_hashes), np.uint64)


class _Samples:
    """Checks one sample after another, and collects the faults by kind."""

    def __init__(self, rules: _Rules, checked: Checked) -> None:
        self._rules, self._checked = rules, checked
        self._keys: set[str] = set()
        self.key_hashes = bytearray()
        self._wrong: dict[str, list[str]] = {}

    def watch(self, found: Iterator[tar.Member]) -> Iterator[tar.Member]:
        """Pass the members on, and note fields that come twice in one sample: only the first would be read."""
        current, extensions = "", set[str]()
        for member in found:
            if member.is_file and (split := tar.split_name(member.name)):
                key, extension = split
                if key != current:
                    current, extensions = key, set()
                if extension in extensions:
                    self._note(f"several .{extension} fields", key)
                extensions.add(extension)
            yield member

    def check(self, sample: tar.TarSample) -> None:
        if sample.key in self._keys:
            self._note("key used before", sample.key)
        self._keys.add(sample.key)
        if self._rules.keys:
            self.key_hashes += hashlib.blake2b(sample.key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for look in (self._check_image, self._check_labels):
            try:
                look(sample)
            except BadSample as bad:
                self._note(bad.cause, sample.key)

    def _check_image(self, sample: tar.TarSample) -> None:
        image = image_bytes({name: bytes(content) for name, content in sample.fields.items()})
        if not image:
            raise BadSample(Cause.EMPTY)
        if self._rules.decode:
            decode(image)

    def _check_labels(self, sample: tar.TarSample) -> None:
        rules = self._rules
        try:
            found = rules.labels.labels_if_any(sample.fields)
        except BadSample as bad:
            raise BadSample(f"{bad.cause}{self._advice(sample)}") from bad
        if found is not None:
            self._checked.label_counts.update({label for label in found.classes if label < rules.num_classes})
            rules.labels.check(found, rules.num_classes, rules.multi_label)

    def _advice(self, sample: tar.TarSample) -> str:
        """What to do about an unreadable label that only the rule of earlier versions cannot read; else ""."""
        if self._rules.labels.version > 1:
            return ""
        try:
            CLEAR.labels(sample.fields)
        except BadSample:
            return ""
        return " by the rule of earlier versions; indexed again with `pack --index-only`, it is read"

    def _note(self, what: str, key: str) -> None:
        self._wrong.setdefault(what, []).append(key)

    def faults(self) -> Iterator[str]:
        for what, keys in self._wrong.items():
            yield from _some([f"sample {key!r}: {what}" for key in keys], f"samples: {what}")


def _some(lines: list[str], what: str) -> list[str]:
    """The first lines, and one line that counts the rest."""
    rest = len(lines) - NAMED_SAMPLES
    return lines if rest <= 0 else [*lines[:NAMED_SAMPLES], f"and {rest:,} more {what}"]
