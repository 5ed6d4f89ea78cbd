"""Perceptual hashes: the hashes of images that look the same differ in few bits.

ImageHash's `phash` (pHash's DCT hash) scales the grey image to 32 x 32 pixels. Each of the 8 x 8 lowest frequencies of
its cosine transform becomes one bit: whether it is above their median. Size, compression and brightness hardly change
it. A mirror image or a crop has another hash, so these are hashed, too: a picture has several *views*, the whole and
five crops.

`HashTable` finds all pairs of hashes that differ in at most `RADIUS_LIMIT` bits without comparing every pair. Each hash
has four quarters of 16 bits; in such a pair, at least one quarter differs in at most two bits (Norouzi, Punjani &
Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012).
"""

from itertools import combinations

import imagehash
import numpy as np
from PIL import Image

from data.images.decode import decode, read_header, reduction

SHORT_SIZE, LONG_SIZE = 8, 16  # bits a side
BITS, LONG_BITS = SHORT_SIZE**2, LONG_SIZE**2
DECODED_SIDE = 64  # a JPEG is decoded at the smallest scale that keeps so many pixels: four a frequency
BLANK_DEVIATION = 3.0  # grey levels of 0..255: a picture with less deviation has no content to hash

VIEWS = ((0.0, 0.0, 0.0), (0.1, 0.5, 0.5), *((0.05, y, x) for y in (0.0, 1.0) for x in (0.0, 1.0)))
"""(share cut off each side; place of the rest in y and x, from 0, top or left, to 1). The first is the whole."""

QUARTER_BITS = 16
QUARTERS = BITS // QUARTER_BITS
QUARTER_RADIUS = 2
CANDIDATES = 1 << 22  # most pairs that are compared at a time
RADIUS_LIMIT = QUARTERS * (QUARTER_RADIUS + 1) - 1


def grey_picture(encoded: bytes) -> Image.Image | None:
    """The image in grey, at a reduced scale if that suffices; None for a blank one.

    Raises:
        BadSample: the image cannot be decoded.
    """
    header = read_header(encoded)
    scale = reduction(header.size, (DECODED_SIDE, DECODED_SIDE)) if header.format == "jpeg" else 1
    picture = Image.fromarray(decode(encoded, scale)).convert("L")
    return picture if np.asarray(picture).std() >= BLANK_DEVIATION else None


def view(picture: Image.Image, number: int) -> Image.Image:
    """View `number` of `VIEWS`."""
    cut, y, x = VIEWS[number]
    width, height = picture.size
    left, top = cut * width * x, cut * height * y
    return picture.crop((round(left), round(top), round(left + width * (1 - cut)), round(top + height * (1 - cut))))


def mirrored(picture: Image.Image) -> Image.Image:
    """The picture with left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def hash_bits(picture: Image.Image) -> int:
    """The 64 bits of the hash as a number."""
    return int(str(imagehash.phash(picture)), 16)


class HashTable:
    """Finds all hashes near a given one: an exact search.

    Args:
        hashes: uint64 (n,).
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        self._order = []  # per quarter: the hashes' numbers, sorted by the quarter's value
        self._starts = []  # per quarter: where each of the 2^16 values begins in that order; last the end
        for quarter in range(QUARTERS):
            values = _quarter(hashes, quarter)
            self._order.append(np.argsort(values, kind="stable"))
            self._starts.append(np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << QUARTER_BITS))]))

    def near(self, queries: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """All pairs at most `radius` bits apart.

        Args:
            queries: uint64 (m,).
            radius: at most `RADIUS_LIMIT`.

        Returns:
            Numbers of the queries and of the hashes: two int64 (pairs,), in ascending order.
        """
        if not 0 <= radius <= RADIUS_LIMIT:
            raise ValueError(f"radius {radius}: this search is exact up to {RADIUS_LIMIT}")
        found = [self._near_in(quarter, queries, radius) for quarter in range(QUARTERS)]
        pairs = np.unique(np.concatenate(found, axis=1), axis=1)  # a pair may be near in several quarters
        return pairs[0], pairs[1]

    def distance(self, queries: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Bits in which each query, uint64 (m,), differs from the hash with its number, int64 (m,): int64 (m,)."""
        return np.bitwise_count(queries ^ self._hashes[numbers]).astype(np.int64)

    def _near_in(self, quarter: int, queries: np.ndarray, radius: int) -> np.ndarray:
        """Pairs at most `radius` apart whose quarters are at most two bits apart: int64 (2, pairs)."""
        values = _quarter(queries, quarter)[:, None] ^ _WITHIN_RADIUS  # (m, 137)
        begin, end = self._starts[quarter][values], self._starts[quarter][values + 1]
        counts = (end - begin).ravel()
        if counts.sum() > CANDIDATES and len(queries) > 1:  # similar images have similar hashes: bound the memory
            half = len(queries) // 2
            first, second = (self._near_in(quarter, part, radius) for part in (queries[:half], queries[half:]))
            return np.concatenate([first, second + np.array([[half], [0]])], axis=1)
        query = np.repeat(np.repeat(np.arange(len(queries)), len(_WITHIN_RADIUS)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        number = self._order[quarter][np.repeat(begin.ravel(), counts) + within]
        near = np.bitwise_count(queries[query] ^ self._hashes[number]) <= radius
        return np.stack([query[near], number[near]])


def _quarter(hashes: np.ndarray, quarter: int) -> np.ndarray:
    """The 16 bits of a quarter: int64 (n,)."""
    return (hashes >> np.uint64(quarter * QUARTER_BITS) & np.uint64((1 << QUARTER_BITS) - 1)).astype(np.int64)


_WITHIN_RADIUS = np.array(
    [
        sum(1 << bit for bit in bits)
        for count in range(QUARTER_RADIUS + 1)
        for bits in combinations(range(QUARTER_BITS), count)
    ],
    np.int64,
)
"""All differences of 16-bit values in at most two bits: int64 (137,)."""
