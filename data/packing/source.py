"""What a source of images is: items that are listed once, in one process, and read by position in any process.

A data set of millions of images is too large to pass through one process. So a source only knows where its items are;
for the positions of one shard it returns a small picklable function that reads them.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from data import bounds, storage
from data.errors import BadSample, Cause, DataError
from data.images.any_format import decode_any
from data.images.decode import decode
from data.images.signature import is_cut_short, why_unusable

KEPT = (("jpg", rb"\xff\xd8\xff"), ("png", rb"\x89PNG\r\n\x1a\n"), ("webp", rb"RIFF....WEBP"))  # by their first bytes
READ_THREADS = 16  # requests at a time: an object store answers each in tens of milliseconds
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
    """An item that does not become a sample: its name in the source, and the reason.

    `things`: how many are named together, such as all rows of a table without an image.
    """

    key: str
    reason: str
    things: int = 1


Reading = Callable[[], Iterator[Item | Skipped]]
"""Reads some items, in order. Picklable: the process that packs them calls it."""


class Source(ABC):
    """A listing of images. Everything that lies in it becomes a sample, or is merged into one, or is named.

    Attributes:
        name: the source's name in the index, such as "imagenet/train".
        fingerprint: of the listing. Packings of one source with equal fingerprints have equal shards. "" if the name
            is sufficient.
        mean_bytes: approximate size of an item, from which the default size of a shard follows.
        num_classes: 0 if it is known only from the labels: then it is one more than the largest.
        multi_label: whether an image may have any number of labels.
        class_names: by class number; empty if there are no names.
        mixed: whether the items are already in random order, so that they are not permuted.
        skipped: what the listing left out, by name. A folder that the listing does not enter is one of them, with all
            that may lie in it.
        found: number of things that the listing met, counted apart from the items: files of any kind, folders that it
            did not enter, members of tars, and rows of a label table that name no file. A row and the file that it
            names are one thing. None: the items, those that are skipped, and those that are merged.
        merged: things that become part of another thing's sample, such as a second file with the same image.
        about: notes on how the source was read, for `Index.about`.
        warnings: what a person may have meant otherwise, one line each.
    """

    name: str
    fingerprint: str
    mean_bytes: float
    num_classes: int = 0
    multi_label: bool = False
    class_names: Sequence[str] = ()
    mixed: bool = False
    skipped: Sequence[Skipped] = ()
    found: int | None = None
    merged: int = 0
    about: Mapping[str, Any] = {}
    warnings: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def reading(self, positions: np.ndarray) -> Reading:
        """A function that reads the items at `positions`, int64 in 0 .. len-1, one after another."""


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256 of the lines that describe a listing, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        line = f"{part}\n"
        try:
            digest.update(line.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # half a character that stands for no byte: a class list in JSON may hold it
            digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def ahead(function: Callable[[Given], Result], given: Sequence[Given]) -> Iterator[Result]:
    """function(x) for each x, in order, with `READ_THREADS` calls at a time."""
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
    """(extension, bytes) of an encoded image. The content decides, not the file's name.

    JPEG (of any colour space), PNG and WebP keep their bytes; those that are cut short are refused, as in training.
    Other formats (BMP, GIF, TIFF, PNM, AVIF, JPEG 2000 ...) become PNG, without further frames, alpha and bits beyond 8
    (any_format.py).

    Raises:
        BadSample: no bytes, too many, or no image; the cause says what it is.
    """
    if not content:
        raise BadSample(Cause.EMPTY)
    field = _as_field(content)
    if len(field[1]) > bounds.FIELD_BYTES:  # training would not read it
        raise BadSample(Cause.LONG_IMAGE)
    return field


def _as_field(content: bytes) -> tuple[str, bytes]:
    kept = next((extension for extension, starts in KEPT if re.match(starts, content, re.S)), None)
    if kept is not None:
        if is_cut_short(content):  # or something follows its end
            _check_decodable(content)
        return kept, content
    _, png = cv2.imencode(".png", cv2.cvtColor(decode_any(content), cv2.COLOR_RGB2BGR))
    return "png", png.tobytes()


def _check_decodable(content: bytes) -> None:
    try:
        decode(content)
    except BadSample as bad:
        if bad.cause == Cause.UNDECODABLE:
            raise BadSample(why_unusable(content)) from bad


def label_field(numbers: Sequence[int], multi_label: bool) -> dict[str, bytes]:
    """The label field: `.cls` with one number, or for multi-label sets `.json` with the list "labels"."""
    if multi_label:
        return {"json": json.dumps({"labels": list(numbers)}).encode()}
    (number,) = numbers
    return {"cls": str(number).encode()}
