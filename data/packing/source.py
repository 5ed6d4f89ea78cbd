"""What can be packed: items that are listed once, in one place, and read by position, in whichever process packs them.

A data set of millions of images is too big to pass through one process. So a source only knows where its items lie; it
hands out small picklable readers for the positions that make up one shard.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError

READ_THREADS = 16  # requests under way at one time: an object store answers each in tens of milliseconds
UNSEEN = (
    "missing for the process that packs it, although it was there when the images were listed; "
    "if several machines pack, all must see the same storage"
)

Given = TypeVar("Given")
Result = TypeVar("Result")


class Item(NamedTuple):
    """One sample to be packed. `fields` go into the shard in this order, as `key.extension`."""

    key: str
    fields: Mapping[str, bytes]


class Skipped(NamedTuple):
    """One thing that does not become a sample: what it is called where it comes from, and why not."""

    key: str
    reason: str


Reading = Callable[[], Iterator[Item | Skipped]]
"""Reads some items, in order. Picklable: it is called in the process that packs them."""


class Source(ABC):
    """Images from somewhere.

    Attributes:
        name: what the index calls it, such as "imagenet/train".
        fingerprint: of the listing: two packings of the same source with the same fingerprint give the same shards. ""
            where the name says it all.
        mean_bytes: of an item, about: with it the default size of a shard is chosen.
        num_classes: 0 where only the labels can tell (then one more than the largest).
        multi_label: whether an image may have any number of labels.
        class_names: by class number; empty where there are none.
        mixed: whether neighbours have nothing in common already, so that their order can stay.
        skipped: what the listing left out.
    """

    name: str
    fingerprint: str
    mean_bytes: float
    num_classes: int = 0
    multi_label: bool = False
    class_names: Sequence[str] = ()
    mixed: bool = False
    skipped: Sequence[Skipped] = ()

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are to read."""

    @abstractmethod
    def reading(self, positions: np.ndarray) -> Reading:
        """What reads the items at `positions`, int64 in 0 .. len-1, one after another."""


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256 over the lines that describe a listing, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def ahead(function: Callable[[Given], Result], given: Sequence[Given]) -> Iterator[Result]:
    """function(x) for each x, in order, `READ_THREADS` under way at one time."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for one in given:
                waiting.append(pool.submit(function, one))
                if len(waiting) > READ_THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_file(url: str, begin: int | None = None, end: int | None = None) -> bytes:
    """The file, or its bytes begin .. end-1.

    Raises:
        DataError: it cannot be read here.
    """
    try:
        with storage.reporting(url):
            return storage.read(url) if begin is None or end is None else storage.read_range(url, begin, end)
    except FileNotFoundError as error:
        raise DataError(f"{url}: {UNSEEN}") from error


def image_field(content: bytes) -> tuple[str, bytes]:
    """(extension, bytes) of an encoded image, by what it holds and not by how its file is called.

    JPEG (of any colour space), PNG and WebP stay as they are, undecoded. What else OpenCV reads (BMP, GIF, TIFF, PNM
    ...) becomes PNG, which loses nothing but further frames, alpha and what exceeds 8 bits.

    Raises:
        BadSample: no bytes, or no image.
    """
    if not content:
        raise BadSample(Cause.EMPTY)
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg", content
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", content
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp", content
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadSample(Cause.UNDECODABLE) from error
    if pixels is None:
        raise BadSample(Cause.UNDECODABLE)
    _, png = cv2.imencode(".png", pixels)
    return "png", png.tobytes()


def label_field(numbers: Sequence[int], multi_label: bool) -> dict[str, bytes]:
    """`.cls` with one number, or for multi-label sets `.json` with the list "labels"."""
    if multi_label:
        return {"json": json.dumps({"labels": list(numbers)}).encode()}
    (number,) = numbers
    return {"cls": str(number).encode()}
