"""ImageNet ReaL: the validation images of ILSVRC2012 with all labels that people see in them ("Are we done with
ImageNet?", 2020). An answer is right if it is one of them.

`real.json` has a list of class numbers for each of the 50,000 images, by the number in the file's name. 3,163 lists are
empty: those images are left out, since as samples without a label they would count as unusable.
"""

import json

import numpy as np
import pyarrow as pa

from data import storage
from data.errors import DataError
from data.packing.source import Skipped
from data.sources.class_tars import TarImages
from data.sources.imagenet import imagenet, validation_number
from data.sources.measure_only import measure_only
from data.sources.tars.keys import texts

REAL = "real.json"
NO_LABEL = f"no label in {REAL}"


def imagenet_real(folder: str, labels: str | None = None) -> TarImages:
    """The validation images in `folder` with ReaL's labels.

    Args:
        folder: with ILSVRC2012's validation tar and devkit.
        labels: URL of real.json. None: it is in the folder.

    Raises:
        DataError: a file is missing, or is another one.
    """
    source = imagenet(folder, "val")
    found = read_labels(labels or storage.join(folder, REAL), len(source), source.num_classes)
    names = list(texts(source.images["name"]))
    of_images = [found[validation_number(name) - 1] for name in names]
    used = np.array([bool(one) for one in of_images], bool)
    images = source.images.append_column("labels", pa.array(of_images, pa.list_(pa.int64())))
    left_out = [Skipped(name, NO_LABEL) for name, kept in zip(names, used.tolist(), strict=True) if not kept]
    real = source.of("imagenet-real", images.filter(pa.array(used)), [*source.skipped, *left_out])
    real.about = measure_only("ImageNet ReaL")
    return real


def read_labels(url: str, images: int, classes: int) -> list[list[int]]:
    """The class numbers of each validation image, in the order of their numbers.

    Raises:
        DataError: the file is missing, or is not real.json.
    """
    try:
        with storage.reporting(url):
            content = storage.read(url)
    except FileNotFoundError as error:
        raise DataError(
            f"{url}: does not exist; it is {REAL} of github.com/google-research/reassessed-imagenet"
        ) from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{url}: not JSON ({str(error)[:100]})") from error
    if not isinstance(found, list) or len(found) != images:
        what = f"a list of {len(found):,}" if isinstance(found, list) else f"a {type(found).__name__}"
        raise DataError(f"{url}: {what} where a list for each of {images:,} images is expected")
    for number, labels in enumerate(found, 1):
        if not isinstance(labels, list) or not all(type(one) is int and 0 <= one < classes for one in labels):
            text = str(labels)[:60]
            raise DataError(f"{url}: image {number} has the labels {text}, not class numbers below {classes:,}")
    return [sorted(set(labels)) for labels in found]
