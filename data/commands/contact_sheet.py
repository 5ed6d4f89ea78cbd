"""Contact sheets: samples of a data set in one picture, to look at."""

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from data import bounds, storage
from data.errors import BadSample, Cause, DataError
from data.images.decode import Header, decode, decoded_bytes, decoding_bytes, read_header, reduction
from data.images.room import Room
from data.shards import tar
from data.shards.fields import image_bytes
from data.shards.index import Index

TILE = 160  # pixels a side
CAPTION = 22
GAP = 10
GROUP_GAP = 26
TEXT_SIZE, TEXT_WEIGHT = 13, 400
LINE = 22  # pixels: height of the line with the cause
BORDER = 3
PEEK_BYTES = 256 << 10  # of one read: enough for a photograph and its labels

_ROOM = Room(bounds.SHOWN_BYTES)

PAPER, FRAME, INK, ALARM, ALARM_PAPER = (250,) * 3, (226,) * 3, (45, 45, 50), (176, 32, 32), (252, 232, 230)  # RGB


class Found(NamedTuple):
    """One sample of a data set, decoded.

    Attributes:
        key: "" if even the key cannot be read.
        image: uint8 (height, width, 3), no larger than a tile; None if it cannot be used.
        size: (height, width) of the whole image.
        classes: its labels.
        cause: why it cannot be used, or "".
    """

    key: str = ""
    image: np.ndarray | None = None
    size: tuple[int, int] | None = None
    classes: tuple[int, ...] = ()
    cause: str = ""


class Tile(NamedTuple):
    """A picture of the sheet and the line below it. Without an image, the cause is in its place."""

    image: np.ndarray | None
    caption: str
    cause: str = ""


def spread_ids(index: Index, count: int) -> list[int]:
    """Ids of at most `count` samples, evenly spread over the data set: always the same ones.

    In a large data set they are samples whose offset is in the index, so that each needs one short read.
    """
    ids = np.unique(np.arange(count) * index.num_samples // max(count, 1)) if index.num_samples else np.zeros(0, int)
    if index.num_samples < count * index.stride:
        return [int(sample_id) for sample_id in ids]
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    starts = index.starts[shards]
    return [int(sample_id) for sample_id in np.unique(starts + (ids - starts) // index.stride * index.stride)]


def find(index: Index, sample_id: int) -> Found:
    """Read and decode one sample."""
    try:
        sample = _read(index, sample_id)
    except BadSample as bad:
        return Found(cause=bad.cause)
    fields = {name: bytes(content) for name, content in sample.fields.items()}
    found = Found(sample.key)
    try:
        encoded = image_bytes(fields)
        header = read_header(encoded)
        found = found._replace(size=header.size)
        found = found._replace(image=_shrunk(encoded, header))
        labels = index.label_rule().labels_if_any(fields)
        if labels is not None:
            found = found._replace(classes=labels.classes)
            index.label_rule().check(labels, index.num_classes, index.multi_label)
    except BadSample as bad:
        return found._replace(cause=bad.cause)
    return found


def _shrunk(encoded: bytes, header: Header) -> np.ndarray:
    """The image, no larger than a tile. Large images are decoded one after another.

    Raises:
        BadSample: it cannot be decoded, or its pixels need more than `bounds.SHOWN_BYTES` at the least scale.
    """
    scale = reduction(header.size, (TILE, TILE)) if header.format == "jpeg" else 1
    if decoded_bytes(header, scale) > bounds.SHOWN_BYTES:
        raise BadSample(Cause.NOT_DRAWN)
    with _ROOM.taking(decoding_bytes(header, scale)):
        image = decode(encoded, scale)
        return _fit(image) if max(image.shape) > TILE else image


def _read(index: Index, sample_id: int) -> tar.TarSample:
    """Read the sample, from the nearest byte offset before it.

    Raises:
        BadSample: the sample cannot be read.
    """
    number, position = index.locate(sample_id)
    group, steps = divmod(position, index.stride)
    url = index.shard_url(number)
    try:
        with storage.reporting(url), storage.open_read(url, PEEK_BYTES) as file:
            file.seek(int(index.shards[number].offsets[group]))
            for skipped, sample in enumerate(tar.samples(tar.read_members(file, PEEK_BYTES))):
                if skipped == steps:
                    return sample
    except (DataError, FileNotFoundError) as error:
        raise BadSample(Cause.UNREADABLE) from error
    raise BadSample(Cause.CUT_SHORT)


def contact_sheet(tiles: Sequence[Tile], columns: int, group: int = 1) -> np.ndarray:
    """Draw tiles row by row.

    Args:
        group: number of neighbours that belong together; the gap after them is wider.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    columns = min(columns, max(len(tiles), 1))
    rows = -(-max(len(tiles), 1) // columns)
    extra = GROUP_GAP - GAP if group > 1 else 0

    def left(column: int) -> int:
        return GAP + column * (TILE + GAP) + column // group * extra

    height = GAP + rows * (TILE + CAPTION + GAP)
    sheet = np.full((height, left(columns - 1) + TILE + GAP, 3), PAPER, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        top, x = GAP + row * (TILE + CAPTION + GAP), left(column)
        _draw(sheet[top : top + TILE + CAPTION, x : x + TILE], tile)
    return sheet


def write_picture(path: str, sheet: np.ndarray) -> None:
    """Write a uint8 RGB picture as .png or .jpg.

    Raises:
        DataError: another kind of file, or it cannot be written.
    """
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".png", ".jpg", ".jpeg"):
        raise DataError(f"{path}: a picture is a .png or a .jpg")
    _, encoded = cv2.imencode(kind, sheet[..., ::-1])
    with storage.reporting(path):
        storage.write_atomic(storage.absolute(path), encoded.tobytes())


def _draw(area: np.ndarray, tile: Tile) -> None:
    """Draw into a view of the sheet, (TILE + CAPTION, TILE, 3)."""
    area[:TILE] = ALARM_PAPER if tile.cause else FRAME
    if tile.image is not None:
        picture = _fit(tile.image)
        height, width = picture.shape[:2]
        top, left = (TILE - height) // 2, (TILE - width) // 2
        area[top : top + height, left : left + width] = picture
    if tile.cause:
        for edge in (np.s_[:BORDER], np.s_[TILE - BORDER : TILE], np.s_[:TILE, :BORDER], np.s_[:TILE, TILE - BORDER :]):
            area[edge] = ALARM
        below = TILE - LINE if tile.image is not None else (TILE - LINE) // 2
        area[below : below + LINE, BORDER : TILE - BORDER] = ALARM_PAPER
        _write(area[below : below + LINE], tile.cause, ALARM)
    _write(area[TILE:], tile.caption, INK)


def _fit(image: np.ndarray) -> np.ndarray:
    """The whole image, as large as fits into a tile. Small images are enlarged by whole numbers, without smoothing."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    if scale >= 2:
        return image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _write(area: np.ndarray, text: str, colour: tuple[int, int, int]) -> None:
    """Write one line into the middle of a view of the sheet, shortened to its width."""
    height, width = area.shape[:2]

    def length(line: str) -> int:
        return int(cv2.getTextSize((0, 0), line, (0, 0), _font(), TEXT_SIZE, TEXT_WEIGHT)[2])

    line = text
    while length(line) > width - 2 * BORDER - 4 and len(text) > 1:
        text = text[:-1]
        line = f"{text.rstrip()}…"
    left, base = (width - length(line)) // 2, (height + TEXT_SIZE) // 2 - 2
    canvas = np.ascontiguousarray(area)
    cv2.putText(canvas, line, (left, base), colour, _font(), TEXT_SIZE, TEXT_WEIGHT)
    area[:] = canvas


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")  # comes with OpenCV, and has the letters of most languages
