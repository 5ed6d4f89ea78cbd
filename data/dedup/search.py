"""Near-duplicates of downstream test images among the images for pre-training.

Every test image is hashed in all its views (phash.py), upright and mirrored. Then every training shard is read once, by
one process: each image is decoded at reduced scale and hashed. The whole image is compared with all views of the test
images, since it may be a crop of one; its crops are compared with the whole test images, since one may be a crop of it.
Two views that differ in at most `DISTANCE` of 64 bits make a candidate. It is a duplicate if the likeness of the
pictures' details is at least `LIKENESS` (likeness.py). benchmarks/dedup.py measures how much these limits find, and how
often they are wrong.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from data import storage
from data.dedup import phash
from data.dedup.likeness import SIDE, likeness, thumbnail
from data.errors import BadSample, DataError
from data.order.exclude import Excluded
from data.parallel import spread
from data.shards import tar
from data.shards.fields import image_bytes
from data.shards.index import Index

DISTANCE = 10
LIKENESS = 0.6
CONFIRMED = 16  # most candidates of one image in one test set that are checked, the nearest first
METHOD = {
    "hash": f"imagehash {imagehash.__version__} phash",
    "bits": phash.BITS,
    "distance": DISTANCE,
    "likeness": LIKENESS,
    "views": phash.VIEWS,
    "mirrored": True,
}
SCAN_BYTES = 8 << 20
ARRAYS = ("source", "hashes", "thumbnails")  # the arrays of `TestImages` that the search uses
BATCH = 512  # training images that are looked up at a time


class ShardTask(NamedTuple):
    """One shard to read: its URL, its name in its index, and its number of samples there."""

    url: str
    name: str
    samples: int


@dataclass(frozen=True, eq=False)
class TestImages:
    """The hashes of all test images.

    Attributes:
        source: int64 (n,), the number of each image's test set.
        sample: int64 (n,), its sample id there.
        hashes: uint64 (n, 2 * views): of the upright views, then of the mirrored ones.
        thumbnails: uint8 (n, 64, 64).
    """

    source: np.ndarray
    sample: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray


@dataclass
class TestSet:
    """The result of hashing one test set.

    Attributes:
        names: (key, shard) of the hashed samples, by id.
        blank, bad: numbers of uniform images and of unreadable ones. Neither are compared.
    """

    names: dict[int, tuple[str, str]] = field(default_factory=dict)
    blank: int = 0
    bad: int = 0


class Match(NamedTuple):
    """A training image (position in its shard, key) and the number of the test image that it nearly repeats."""

    position: int
    key: str
    test: int
    distance: int
    likeness: float


@dataclass
class Compared:
    """The result of comparing one training shard.

    Attributes:
        matches: by position; for each test set at most one, the nearest that is confirmed.
        blank, bad: numbers of images that were not compared.
        fault: why the shard could not be read to its end, or "".
    """

    samples: int
    matches: list[Match] = field(default_factory=list)
    blank: int = 0
    bad: int = 0
    fault: str = ""


def hash_test_sets(indexes: Sequence[Index], workers: int = 1) -> tuple[TestImages, list[TestSet]]:
    """Hash the images of all test sets.

    Raises:
        DataError: a shard cannot be read.
    """
    owners = [(number, start) for number, index in enumerate(indexes) for start in index.starts[:-1].tolist()]
    tasks = [task for index in indexes for task in _tasks(index)]
    sets = [TestSet() for _ in indexes]
    source, sample, hashes, thumbnails = [], [], [], []
    for (number, start), task, hashed in zip(owners, tasks, spread(_hash_shard, tasks, workers), strict=True):
        sets[number].blank += hashed.blank
        sets[number].bad += hashed.bad
        for position, key in hashed.keys:
            sets[number].names[start + position] = key, task.name
            source.append(number)
            sample.append(start + position)
        hashes.append(hashed.hashes)
        thumbnails.append(hashed.thumbnails)
    images = TestImages(
        np.array(source, np.int64), np.array(sample, np.int64), np.concatenate(hashes), np.concatenate(thumbnails)
    )
    return images, sets


def compare(index: Index, images: TestImages, workers: int = 1) -> Iterator[Compared]:
    """Compare the training shards with the test images: a result for each shard, in the index's order."""
    with TemporaryDirectory() as folder:  # the processes map these files: one copy of the hashes in memory for all
        for name in ARRAYS:
            np.save(Path(folder, f"{name}.npy"), getattr(images, name))
        yield from spread(partial(_compare_shard, folder), _tasks(index), workers)


def excluded(
    index: Index, number: int, compared: Compared, images: TestImages, sets: Sequence[TestSet]
) -> list[Excluded]:
    """The duplicates in training shard `number`, with names."""
    found = []
    for match in compared.matches:
        source, test_id = int(images.source[match.test]), int(images.sample[match.test])
        key, shard = sets[source].names[test_id]
        sample_id = int(index.starts[number]) + match.position
        name = index.shards[number].url
        found.append(Excluded(sample_id, match.key, name, source, test_id, key, shard, match.distance, match.likeness))
    return found


def _tasks(index: Index) -> list[ShardTask]:
    return [ShardTask(index.shard_url(number), shard.url, shard.samples) for number, shard in enumerate(index.shards)]


@dataclass
class _HashedShard:
    keys: list[tuple[int, str]]  # position and key of the images that were hashed
    hashes: np.ndarray
    thumbnails: np.ndarray
    blank: int
    bad: int


def _hash_shard(task: ShardTask) -> _HashedShard:
    count = Compared(task.samples)
    keys, hashes, thumbnails = [], [], []
    for position, key, picture in _pictures(task, count):
        views = [phash.view(picture, number) for number in range(len(phash.VIEWS))]
        views += [phash.mirrored(view) for view in views]
        keys.append((position, key))
        hashes.append([phash.hash_bits(view) for view in views])
        thumbnails.append(thumbnail(picture))
    if count.fault:
        raise DataError(
            f"{task.url}: {count.fault}; `python -m data verify {storage.parent(task.url)}` shows all faults"
        )
    return _HashedShard(
        keys,
        np.array(hashes, np.uint64).reshape(len(keys), 2 * len(phash.VIEWS)),
        np.array(thumbnails, np.uint8).reshape(len(keys), SIDE, SIDE),
        count.blank,
        count.bad,
    )


def _pictures(task: ShardTask, count: Compared) -> Iterator[tuple[int, str, Image.Image]]:
    """(position, key, grey picture) of a shard's images. Blank and bad ones and a fault are noted in `count`."""
    position = -1
    try:
        with storage.reporting(task.url), storage.open_read(task.url, SCAN_BYTES) as file:
            for position, sample in enumerate(tar.samples(tar.read_members(file, SCAN_BYTES))):
                try:
                    fields = {name: bytes(content) for name, content in sample.fields.items()}
                    picture = phash.grey_picture(image_bytes(fields))
                except BadSample:
                    count.bad += 1
                    continue
                if picture is None:
                    count.blank += 1
                else:
                    yield position, sample.key, picture
    except FileNotFoundError:
        count.fault = "missing"
    except DataError as error:
        count.fault = str(error).removeprefix(f"{task.url}: ")
    else:
        if position + 1 != task.samples:
            count.fault = f"{position + 1} samples instead of {task.samples}"


class _Search:
    """The test images, in tables for the search."""

    def __init__(self, source: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> None:
        self._source, self._thumbnails = source, thumbnails
        views = len(phash.VIEWS)
        self._whole = _Lookup(hashes, np.arange(2 * views))
        self._crops = _Lookup(hashes, np.array([0, views]))  # the whole images, upright and mirrored

    def matches(self, pictures: Sequence[tuple[int, str, Image.Image]]) -> Iterator[Match]:
        """For each picture, the nearest test image of each test set that is near enough and confirmed."""
        views = range(len(phash.VIEWS))
        hashes = np.array(
            [[phash.hash_bits(phash.view(picture, view)) for view in views] for _, _, picture in pictures], np.uint64
        )
        near = np.concatenate([self._whole.near(hashes[:, :1], first=0), self._crops.near(hashes[:, 1:], first=1)])
        near = near[np.argsort(near[:, -1], kind="stable")]  # nearest first, and of each pair its nearest views
        _, first = np.unique(near[:, [0, 2]], axis=0, return_index=True)
        tried: Counter[tuple[int, int]] = Counter()
        for number, view, test, test_view, distance in near[np.sort(first)].tolist():
            place = number, int(self._source[test])
            if tried[place] >= CONFIRMED:
                continue
            tried[place] += 1
            position, key, picture = pictures[number]
            mirror, test_view = divmod(test_view, len(phash.VIEWS))
            similarity = likeness(thumbnail(picture), view, self._thumbnails[test], test_view, mirror=bool(mirror))
            if similarity >= LIKENESS:
                tried[place] = CONFIRMED  # found
                yield Match(position, key, test, distance, similarity)


class _Lookup:
    """A table of some views of all test images."""

    def __init__(self, hashes: np.ndarray, views: np.ndarray) -> None:
        self._views = views
        self._table = phash.HashTable(hashes[:, views].ravel())

    def near(self, hashes: np.ndarray, first: int) -> np.ndarray:
        """The entries near `hashes`, uint64 (pictures, k), of the pictures' views first .. first+k-1.

        Returns:
            int64 (pairs, 5): picture, its view, test image, its view (mirrored ones after all upright ones), distance.
        """
        query, entry = self._table.near(hashes.ravel(), DISTANCE)
        picture, view = np.divmod(query, hashes.shape[1])
        test, test_view = np.divmod(entry, len(self._views))
        distance = self._table.distance(hashes.ravel()[query], entry)
        return np.stack([picture, view + first, test, self._views[test_view], distance], axis=1)


@lru_cache(maxsize=1)
def _search(folder: str) -> _Search:
    return _Search(*(np.load(Path(folder, f"{name}.npy"), mmap_mode="r") for name in ARRAYS))


def _compare_shard(folder: str, task: ShardTask) -> Compared:
    compared = Compared(task.samples)
    search, pictures = _search(folder), _pictures(task, compared)
    while batch := list(islice(pictures, BATCH)):
        compared.matches += sorted(search.matches(batch))
    return compared
