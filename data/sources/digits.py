"""The 1,797 handwritten digits that come with scikit-learn: real images for a real first run, without a download.

8x8 grey images of 32x32 bitmaps' pixel counts, 0..16 (Alpaydin & Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998; the data set's test part).
"""

from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from data import storage
from data.pack import pack

SOURCE = "digits"
LEVELS = 16  # the brightest value
SAMPLES_PER_SHARD = 400  # makes four training shards, so that even this small set has an order to shuffle
HELD_OUT = 5  # every fifth image of each class, in the data set's order, is held out


def pack_digits(dest: str, force: bool = False) -> bool:
    """Pack the images into DEST/train (80 %) and DEST/test (20 % of each class), each with its index.

    Images are 8x8 grey PNG of round(value * 255 / 16), labels `.cls`, keys the place in scikit-learn's arrays. The
    same bytes every time.

    Returns:
        Whether anything was written: what is there and complete is left alone, unless `force` is set.

    Raises:
        DataError: a destination holds something else.
    """
    from sklearn.datasets import load_digits  # a second's import that nothing else here needs

    data = load_digits()
    images: np.ndarray = np.rint(data.images * 255 / LEVELS).astype(np.uint8)
    labels: np.ndarray = data.target
    held_out = held_out_mask(labels)
    wrote = [
        pack(
            storage.join(dest, split),
            _samples(images, labels, np.flatnonzero(chosen)),
            source=f"{SOURCE}/{split}",
            samples_per_shard=SAMPLES_PER_SHARD,
            force=force,
        )
        for split, chosen in (("train", ~held_out), ("test", held_out))
    ]
    return any(wrote)


def held_out_mask(labels: np.ndarray) -> np.ndarray:
    """bool (n,): the fifth, tenth, fifteenth ... image of every class."""
    mask = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        mask[np.flatnonzero(labels == number)[HELD_OUT - 1 :: HELD_OUT]] = True
    return mask


def _samples(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for number in chosen.tolist():
        _, png = cv2.imencode(".png", images[number])
        yield f"{number:06d}", {"png": png.tobytes(), "cls": str(labels[number]).encode()}
