"""Any number of drawn images: textured, coloured, overlapping shapes on textured grounds (shape_drawing.py).

They need no download, so an experiment runs anywhere and at any size. They are not photographs, so its numbers compare
methods with each other, not with published results.

Pixels depend on OpenCV's drawing and JPEG bytes on its encoder: the same bytes need the same version of it.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np

from data import storage
from data.errors import DataError
from data.packing.pack import DEFAULTS, Options, Packed, pack
from data.packing.source import Item, Reading, Source, fingerprint, label_field
from data.ray_session import Runner, in_process
from data.sources.shape_drawing import SPLITS, VERSION, class_names, shape_image

JPEG_QUALITY = 90
MEASURED = 64  # images over whose size in bytes the mean is taken


class Shapes(Source):
    """`samples` images of one split, as JPEG of quality 90; labels `.cls`, or `.json` lists in a multi-label set.

    Raises:
        DataError: numbers out of range.
    """

    mixed = True

    def __init__(
        self,
        *,
        samples: int,
        classes: int = 10,
        image_size: int = 64,
        seed: int = 0,
        split: str = "train",
        multi_label: bool = False,
    ) -> None:
        for what, value, low, high in (
            ("classes", classes, 10, 1000),
            ("image size", image_size, 16, 4096),
            ("samples", samples, 1, 1 << 40),
        ):
            if not low <= value <= high:
                raise DataError(f"shapes: {what} = {value:,}: choose {low:,} to {high:,}")
        self.name = f"shapes/{split}"
        self.num_classes, self.multi_label = classes, multi_label
        self.class_names = class_names(classes)
        self.fingerprint = fingerprint([VERSION, samples, classes, image_size, seed, split, multi_label])
        self._samples = samples
        self._read = partial(_read, seed, split, classes, image_size, multi_label)
        first = self._read(range(min(samples, MEASURED)))
        self.mean_bytes = float(np.mean([len(item.fields["jpg"]) for item in first]))

    def __len__(self) -> int:
        return self._samples

    def reading(self, positions: np.ndarray) -> Reading:
        return partial(self._read, positions.tolist())


def pack_shapes(
    dest: str,
    *,
    samples: int = 50_000,
    test_samples: int = 5_000,
    classes: int = 10,
    image_size: int = 64,
    seed: int = 0,
    multi_label: bool = False,
    options: Options = DEFAULTS,
    runner: Runner = in_process,
    force: bool = False,
    show_progress: bool = False,
) -> dict[str, Packed]:
    """Pack DEST/train and DEST/test, by default in this process. The bytes are always the same. A complete set is not
    touched, unless `force` is set.

    Raises:
        DataError: a destination holds another set, or numbers are out of range.
    """
    packed = {}
    for split, count in zip(SPLITS, (samples, test_samples), strict=True):
        source = Shapes(
            samples=count, classes=classes, image_size=image_size, seed=seed, split=split, multi_label=multi_label
        )
        packed[split] = pack(
            storage.join(dest, split), source, options, runner=runner, force=force, show_progress=show_progress
        )
    return packed


def _read(
    seed: int, split: str, classes: int, image_size: int, multi_label: bool, numbers: Sequence[int]
) -> Iterator[Item]:
    for number in numbers:
        image, labels = shape_image(
            seed, split, number, classes=classes, image_size=image_size, multi_label=multi_label
        )
        _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        yield Item(f"{number:09d}", {"jpg": jpeg.tobytes()} | label_field(labels, multi_label))
