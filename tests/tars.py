"""WebDataset shards of random bytes, written by the standard library, with their index."""

import hashlib
import io
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import storage
from data.shards.index import Index, Shard, open_index, write_index

STRIDE = 64

Fields = dict[str, bytes]


def write_set(
    url: str, counts: Sequence[int], sizes: tuple[int, int] = (1000, 3000), seed: int = 0
) -> tuple[Index, list[Fields]]:
    """Write a set of shards with `counts` samples to a folder. Returns its index, and the fields of every sample by id.

    `jpg` is sizes[0] to sizes[1] random bytes, so that any exchange or loss is visible; `cls` is one digit.
    """
    rng = random.Random(seed)
    shards, samples = [], []
    for number, count in enumerate(counts):
        name = f"{number:06d}.tar"
        content, offsets, made = tar_of_random_samples(rng, count, sizes)
        storage.write_atomic(storage.join(url, name), content)
        shards.append(Shard(name, count, len(content), hashlib.sha256(content).hexdigest(), offsets))
        samples += made
    index = Index(storage.join(url, "index.json"), tuple(shards), 10, multi_label=False, extensions=("cls", "jpg"))
    write_index(index)
    return open_index(url), samples


def packed_samples(folder: Path) -> list[tuple[str, Fields]]:
    """Key and fields of each sample in the tars of a folder, read by the standard library: members with one stem.

    Fails the test if a sample has two fields of one name.
    """
    samples: dict[tuple[str, str], Fields] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                fields = samples.setdefault((path.name, key), {})
                assert extension not in fields
                fields[extension] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return [(key, fields) for (_, key), fields in samples.items()]


def tar_of_random_samples(
    rng: random.Random, count: int, sizes: tuple[int, int]
) -> tuple[bytes, np.ndarray, list[Fields]]:
    """A tar of `count` samples, the offset of each STRIDE-th sample, and the fields of all."""
    samples = [{"jpg": rng.randbytes(rng.randint(*sizes)), "cls": b"%d" % rng.randrange(10)} for _ in range(count)]
    file, offsets = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, fields in enumerate(samples):
            if number % STRIDE == 0:
                offsets.append(archive.offset)
            for extension, content in fields.items():
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue(), np.array(offsets, np.int64), samples


def uniform_index(counts: list[int], stride: int, sample_bytes: int) -> Index:
    """Shards of samples of `sample_bytes` bytes, with 1024 zeros at the end."""
    shards = tuple(
        Shard(f"{n}.tar", count, count * sample_bytes + 1024, "", np.arange(0, count, stride) * sample_bytes)
        for n, count in enumerate(counts)
    )
    return Index("memory://nowhere/index.json", shards, num_classes=1, multi_label=False, stride=stride)
