"""`index.json`: what a folder of WebDataset shards holds, so that any sample is found without reading what precedes it.

A sample's id is its place in the shards laid end to end in the index's order: 0 .. num_samples-1.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data import storage
from data.errors import DataError

INDEX_NAME = "index.json"
FORMAT = "vit-at-scale/webdataset-index"
VERSION = 1
STRIDE = (
    64  # samples between two byte offsets: 303M samples make 4.7M offsets, and a lookup reads < 64 samples too many
)


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar.

    Attributes:
        url: relative to the index's folder, or absolute.
        samples: how many samples it holds.
        bytes: its length.
        sha256: of the whole tar, in hexadecimal.
        offsets: int64 (ceil(samples / stride),): where every stride-th sample's first header begins.
    """

    url: str
    samples: int
    bytes: int
    sha256: str
    offsets: np.ndarray


@dataclass(frozen=True, eq=False)
class Index:
    """The shards of a data set. Picklable; opening files is left to the readers.

    Attributes:
        url: of the index file.
        shards: in the order that defines the sample ids.
        num_classes: one more than the largest label (or what the packer was told).
        multi_label: whether a sample may have any number of labels.
        extensions: the fields found, such as ("cls", "png").
        source: who packed it ("digits"), or "" for shards made elsewhere.
    """

    url: str
    shards: tuple[Shard, ...]
    num_classes: int
    multi_label: bool
    extensions: tuple[str, ...] = ()
    source: str = ""
    stride: int = STRIDE

    @cached_property
    def starts(self) -> np.ndarray:
        """Id of each shard's first sample, then the number of samples: int64 (shards + 1,)."""
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
        """SHA-256 of the lines `name count sha256`, one a shard: the same for the same samples in the same order."""
        lines = (f"{shard.url} {shard.samples} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def shard_url(self, number: int) -> str:
        """Where shard `number` is."""
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
        url: its folder or its index.json, local or on any file system that fsspec knows.

    Raises:
        DataError: nothing there, no index, another version, or an index that contradicts itself.
    """
    place = storage.absolute(url)
    index_url = place if place.endswith(".json") else storage.join(place, INDEX_NAME)
    with storage.reporting(url):
        try:
            content = storage.read(index_url)
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = storage.parent(index_url)
            advice = f"no {INDEX_NAME} there; to index WebDataset tars run `python -m data pack --index-only {folder}`"
            raise DataError(f"{url}: {advice if storage.exists(folder) else 'does not exist'}") from error
    return _parse(index_url, content)


def write_index(index: Index) -> None:
    """Write `index` at its URL, whole or not at all. The same index gives the same bytes: one line a shard."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "source": index.source,
        "num_samples": index.num_samples,
        "num_classes": index.num_classes,
        "multi_label": index.multi_label,
        "extensions": list(index.extensions),
        "stride": index.stride,
    }
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    shards = ",\n".join(f"    {json.dumps(_shard_record(shard))}" for shard in index.shards)
    text = "\n".join(["{", *lines, '  "shards": [', shards, "  ]", "}", ""])
    storage.write_atomic(index.url, text.encode())


def _shard_record(shard: Shard) -> dict[str, object]:
    return {
        "url": shard.url,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "offsets": shard.offsets.tolist(),
    }


def _parse(url: str, content: bytes) -> Index:
    try:
        record = json.loads(content)
        if record["format"] != FORMAT:
            raise ValueError("it is not an index of this program")
        if record["version"] != VERSION:
            raise DataError(
                f"{url}: index version {record['version']}, this program reads {VERSION}; "
                f"index again with `python -m data pack --index-only {storage.parent(url)}`"
            )
        stride = int(record["stride"])
        index = Index(
            url=url,
            shards=tuple(_parse_shard(shard, stride) for shard in record["shards"]),
            num_classes=int(record["num_classes"]),
            multi_label=bool(record["multi_label"]),
            extensions=tuple(record["extensions"]),
            source=record["source"],
            stride=stride,
        )
        if not index.shards:
            raise ValueError("it lists no shards")
        if index.num_samples != record["num_samples"]:
            raise ValueError("the shards' counts do not add up")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{url}: corrupt index ({reason}); "
            f"delete it and index again with `python -m data pack --index-only {storage.parent(url)}`"
        ) from error
    return index


def _parse_shard(record: dict[str, object], stride: int) -> Shard:
    shard = Shard(
        url=str(record["url"]),
        samples=int(record["samples"]),  # type: ignore[call-overload]
        bytes=int(record["bytes"]),  # type: ignore[call-overload]
        sha256=str(record["sha256"]),
        offsets=np.asarray(record["offsets"], dtype=np.int64),
    )
    if len(shard.offsets) != -(-shard.samples // stride):
        raise ValueError(f"{shard.url}: {len(shard.offsets)} offsets for {shard.samples} samples")
    return shard
