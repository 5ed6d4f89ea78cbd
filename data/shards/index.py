"""`index.json`: the contents of a folder of WebDataset shards. With it, any sample is found without reading others.

A sample's id is its place in the shards laid end to end in the index's order: 0 .. num_samples-1.

A tar consists of records of 512 bytes, so a sample's offset is a number of records. The file holds the offsets of each
shard as base64 of little-endian uint32: 303M samples in 30,000 shards make 4.7M offsets, 30 MB of text that opens in
about a second. As JSON numbers (version 1, still read) they would become hundreds of MB of Python integers.
"""

import base64
import binascii
import hashlib
import json
import math
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from data import bounds, storage
from data.errors import DataError
from data.shards.label_rule import FIRST, LabelRule, parse_rule
from data.shards.missing import advice

INDEX_NAME = "index.json"
FORMAT = "vit-at-scale/webdataset-index"
VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1: byte offsets as lists of numbers, and no label_counts
STRIDE = 64  # samples between two byte offsets: a lookup reads fewer than 64 extra samples
COUNTS = frozenset(("found", "merged"))  # among the notes
MEASURE_ONLY = "measure_only"  # note that names a set on which nothing may be trained
CLASS_MAP = "class_map"  # note of ObjectNet: {its class: [ImageNet class numbers]}
RECORD = 512  # bytes: every header and every content in a tar begins at a multiple


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar.

    Attributes:
        url: relative to the index's folder, or absolute.
        samples: number of samples.
        bytes: its length.
        sha256: of the whole tar, in hexadecimal.
        offsets: int64 (ceil(samples / stride),), of the first header of every stride-th sample.
    """

    url: str
    samples: int
    bytes: int
    sha256: str
    offsets: np.ndarray


@dataclass(frozen=True, eq=False)
class Index:
    """The shards of a data set. Picklable: it holds no open file.

    Attributes:
        url: of the index file.
        shards: in the order of the sample ids.
        num_classes: one more than the largest label, or the number that was given at packing.
        multi_label: whether a sample may have any number of labels.
        extensions: names of the fields, such as ("cls", "png").
        source: the source that was packed ("digits"), or "" for shards of another tool.
        stride: samples between two of a shard's offsets.
        label_counts: images of each label that occurs. Empty: not counted.
        class_names: by class number; empty if there are none. No part of the digest.
        about: what else packing or indexing recorded, as JSON values by key, such as {"packed_by": "0.2.0"}. No part of
            the digest.
        label_rules: of each shard, if several sets are joined; else empty, and `about` has the rule.
    """

    url: str
    shards: tuple[Shard, ...]
    num_classes: int
    multi_label: bool
    extensions: tuple[str, ...] = ()
    source: str = ""
    stride: int = STRIDE
    label_counts: Mapping[int, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    label_rules: tuple[LabelRule, ...] = ()

    @cached_property
    def starts(self) -> np.ndarray:
        """Id of each shard's first sample, and last the number of all samples: int64 (shards + 1,)."""
        counts = np.fromiter((shard.samples for shard in self.shards), np.int64, len(self.shards))
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @property
    def num_samples(self) -> int:
        return int(self.starts[-1])

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the lines `name count sha256`, one a shard: equal for the same samples in the same order."""
        lines = (f"{shard.url} {shard.samples} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def measure_only(self) -> str:
        """The name of the set, if nothing may be trained on it; else empty."""
        return str(self.about.get(MEASURE_ONLY, ""))

    def label_rule(self, sample_id: int = 0) -> LabelRule:
        """How the labels of a sample are read: by the rule of its set.

        Raises:
            IndexError: there is no such sample, and several sets are joined.
        """
        return self.label_rules[self.locate(sample_id)[0]] if self.label_rules else self._label_rule

    @cached_property
    def _label_rule(self) -> LabelRule:
        return parse_rule(self.about.get("label_rule"), self.class_names)

    def shard_url(self, number: int) -> str:
        """URL of shard `number`."""
        return storage.join(storage.parent(self.url), self.shards[number].url)

    def locate(self, sample_id: int) -> tuple[int, int]:
        """(shard number, position in the shard) of a sample.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} of {self.num_samples}")
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return number, sample_id - int(self.starts[number])


def open_index(url: str) -> Index:
    """Read the index of a data set.

    Args:
        url: its folder or its index.json, local or on any file system of fsspec.

    Raises:
        DataError: nothing there, no index, another version, or an index that contradicts itself.
    """
    place = storage.absolute(url)
    with storage.reporting(url):
        is_file = place.endswith(".json") and not storage.is_folder(place)
        index_url = place if is_file else storage.join(place, INDEX_NAME)
        try:
            content = storage.read(index_url)
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = storage.parent(index_url)
            raise DataError(
                f"{url}: {advice(folder, INDEX_NAME) if storage.exists(folder) else 'does not exist'}"
            ) from error
    return _parse(index_url, content)


def write_index(index: Index) -> None:
    """Write `index` at its URL, whole or not at all, one line a shard. The same index gives the same bytes.

    Raises:
        DataError: an offset that is impossible in a tar.
    """
    head: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "source": index.source,
        "num_samples": index.num_samples,
        "num_classes": index.num_classes,
        "multi_label": index.multi_label,
        "extensions": list(index.extensions),
        "stride": index.stride,
        "label_counts": dict(sorted(index.label_counts.items())),
    }
    if index.class_names:
        head["class_names"] = list(index.class_names)
    if index.about:
        head["about"] = dict(index.about)
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    shards = ",\n".join(f"    {json.dumps(_shard_record(shard))}" for shard in index.shards)
    text = "\n".join(["{", *lines, '  "shards": [', shards, "  ]", "}", ""])
    storage.write_atomic(index.url, text.encode())


def concatenate(indexes: Sequence[Index]) -> Index:
    """One index of several data sets: sample ids of the first, then of the second, and so on.

    Shard URLs become absolute, so its digest depends on the sets' URLs: identify a set by its own index's digest. It
    has as many classes as the set with the most, and the names of the first set that has names, rather than numbers as
    names; it is multi-label if any set is; it counts labels if all sets do. The stride is the least common multiple.
    Labels are read by the rule of each set; `about` has the notes of all.
    """
    if len(indexes) == 1:
        return indexes[0]
    stride = math.lcm(*(index.stride for index in indexes))
    shards = tuple(
        replace(shard, url=index.shard_url(number), offsets=shard.offsets[:: stride // index.stride])
        for index in indexes
        for number, shard in enumerate(index.shards)
    )
    named = [index.class_names for index in indexes if index.class_names] or [()]
    label_counts: Counter[int] = Counter()
    if all(index.label_counts for index in indexes):
        for index in indexes:
            label_counts.update(index.label_counts)
    rules = [rule for index in indexes for rule in index.label_rules or [index.label_rule()] * len(index.shards)]
    return Index(
        url=" + ".join(index.url for index in indexes),
        shards=shards,
        num_classes=max(index.num_classes for index in indexes),
        multi_label=any(index.multi_label for index in indexes),
        extensions=tuple(sorted({extension for index in indexes for extension in index.extensions})),
        source=" + ".join(dict.fromkeys(index.source for index in indexes)),
        stride=stride,
        label_counts=label_counts,
        class_names=next((names for names in named if not all(map(str.isdecimal, names))), named[0]),
        about={"sets": [dict(index.about) for index in indexes]} if any(index.about for index in indexes) else {},
        label_rules=() if all(rule == FIRST for rule in rules) else tuple(rules),
    )


def _shard_record(shard: Shard) -> dict[str, object]:
    places, rest = np.divmod(shard.offsets, RECORD)
    if rest.any() or (places < 0).any() or (places >= 1 << 32).any():
        raise DataError(f"{shard.url}: byte offsets must be multiples of {RECORD} below 2 TB; is it a tar?")
    return {
        "url": shard.url,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "offsets": base64.b64encode(places.astype("<u4").tobytes()).decode(),
    }


def _parse(url: str, content: bytes) -> Index:
    try:
        record = json.loads(content)
        if record["format"] != FORMAT:
            raise ValueError("it is not an index of this program")
        if record["version"] not in READABLE_VERSIONS:
            raise DataError(
                f"{url}: index version {record['version']}, this program reads {VERSION} and older; "
                f"index again with `python -m data pack --index-only {storage.parent(url)}`"
            )
        stride = int(record["stride"])
        if not 1 <= stride <= bounds.LONGEST_STRIDE:
            raise ValueError(f"stride {stride}")
        index = Index(
            url=url,
            shards=tuple(_parse_shard(number, shard, stride) for number, shard in enumerate(record["shards"])),
            num_classes=int(record["num_classes"]),
            multi_label=bool(record["multi_label"]),
            extensions=_texts(record, "extensions"),
            source=_text(record["source"], "source"),
            stride=stride,
            label_counts={int(label): int(count) for label, count in record.get("label_counts", {}).items()},
            class_names=_texts(record, "class_names"),
            about=_about(record.get("about", {})),
        )
        if not index.shards:
            raise ValueError("it lists no shards")
        index.label_rule()
        if index.num_classes < 0:
            raise ValueError(f"{index.num_classes} classes")
        if index.num_samples != record["num_samples"]:
            raise ValueError("the shards' counts do not add up")
        for label, count in index.label_counts.items():
            if not (0 <= label < index.num_classes and 0 < count <= index.num_samples):
                raise ValueError(
                    f"{count} images of label {label}, of {index.num_samples} and {index.num_classes} classes"
                )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{url}: corrupt index ({_reason(error)}); "
            f"delete it and index again with `python -m data pack --index-only {storage.parent(url)}`"
        ) from error
    return index


def _parse_shard(number: int, record: Mapping[str, Any], stride: int) -> Shard:
    try:
        shard = Shard(
            url=str(record["url"]),
            samples=int(record["samples"]),
            bytes=int(record["bytes"]),
            sha256=str(record["sha256"]),
            offsets=_parse_offsets(record["offsets"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"shard {number}: {_reason(error)}") from error
    if (fault := _fault(shard, stride)) is not None:
        raise ValueError(f"{shard.url}: {fault}")
    return shard


def _about(record: Any) -> dict[str, Any]:
    """The notes, of which the counts are whole numbers."""
    about = dict(record)
    for key in COUNTS.intersection(about):
        if type(about[key]) is not int:
            raise ValueError(f"{about[key]!r} in about.{key} is no whole number")
    return about


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts under a key; empty if there is none."""
    values = record.get(key, [])
    if not isinstance(values, list):
        raise ValueError(f"{key} is no list")
    return tuple(_text(value, key) for value in values)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} in {key} is no text")
    return value


def _parse_offsets(places: str | Sequence[int]) -> np.ndarray:
    """Byte offsets, int64, of both versions: base64 of record numbers, or the offsets themselves."""
    if isinstance(places, str):
        return np.frombuffer(binascii.a2b_base64(places, strict_mode=True), "<u4").astype(np.int64) * RECORD
    return np.fromiter(places, np.int64)


def _fault(shard: Shard, stride: int) -> str | None:
    """The contradiction in an index's entry, or None."""
    offsets = shard.offsets
    if shard.samples < 0 or not 0 <= shard.bytes < bounds.SHARD_BYTES:
        return f"{shard.samples} samples in {shard.bytes} bytes"
    if len(offsets) != -(-shard.samples // stride):
        return f"{len(offsets)} offsets for {shard.samples} samples"
    if len(offsets) and not (offsets[0] >= 0 and offsets[-1] < shard.bytes and (offsets[1:] > offsets[:-1]).all()):
        return f"the offsets do not ascend within its {shard.bytes} bytes"
    if ".." in shard.url and not storage.is_absolute(shard.url) and posixpath.normpath(shard.url).split("/")[0] == "..":
        return "it lies outside the index's folder; only an absolute URL may"
    return None


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
