"""The 1,797 handwritten digits of scikit-learn: real images for a first run, without a download.

8x8 grey images of 32x32 bitmaps' pixel counts, 0..16 (Alpaydin & Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998; the data set's test part).
"""

from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np

from data import storage
from data.packing.pack import Options, pack
from data.packing.source import Item, Reading, Source

LEVELS = 16  # the brightest value
SAMPLES_PER_SHARD = 400  # makes four training shards, so that this small set has shards to shuffle
HELD_OUT = 5  # every fifth image of each class, in the data set's order, is held out
SPLITS = ("train", "test")
OPTIONS = Options(shuffle_seed=None, samples_per_shard=SAMPLES_PER_SHARD, full_shards=True)


class Digits(Source):
    """One split: "train" (80 %) or "test" (20 % of each class). 8x8 grey PNG of round(value * 255 / 16), `.cls`."""

    fingerprint = ""  # they never change
    mean_bytes = 130.0
    num_classes = 10

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits  # takes a second; the other sources do not need it

        self.name = f"digits/{split}"
        data = load_digits()
        self._images: np.ndarray = np.rint(data.images * 255 / LEVELS).astype(np.uint8)
        self._labels: np.ndarray = data.target
        self._numbers = np.flatnonzero(held_out_mask(self._labels) == (split == "test"))

    def __len__(self) -> int:
        return len(self._numbers)

    def reading(self, positions: np.ndarray) -> Reading:
        numbers = self._numbers[positions]
        return partial(_read, numbers, self._images[numbers], self._labels[numbers])


def pack_digits(dest: str, force: bool = False) -> bool:
    """Pack the images into DEST/train and DEST/test, each with its index. The bytes are always the same.

    Keys are places in scikit-learn's arrays.

    Returns:
        Whether anything was written: a complete set is not touched, unless `force` is set.

    Raises:
        DataError: a destination holds another set.
    """
    packed = [pack(storage.join(dest, split), Digits(split), OPTIONS, force=force) for split in SPLITS]
    return any(one.wrote for one in packed)


def held_out_mask(labels: np.ndarray) -> np.ndarray:
    """bool (n,): the fifth, tenth, fifteenth ... image of every class."""
    mask = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        mask[np.flatnonzero(labels == number)[HELD_OUT - 1 :: HELD_OUT]] = True
    return mask


def _read(numbers: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Iterator[Item]:
    for number, image, label in zip(numbers.tolist(), images, labels.tolist(), strict=True):
        _, png = cv2.imencode(".png", image)
        yield Item(f"{number:06d}", {"png": png.tobytes(), "cls": str(label).encode()})
