"""The fields of a sample: which one is the image, and the formats of labels."""

import json
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from data.errors import BadSample, Cause

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSIONS = ("cls", "json")

Bytes = bytes | memoryview


class Labels(NamedTuple):
    """The classes of one image and the weight of each: 1, unless the data set states another.

    `is_list`: the field was written as a list, even of one class. Lists mark a multi-label data set.
    """

    classes: tuple[int, ...]
    weights: tuple[float, ...]
    is_list: bool


def image_bytes(fields: Mapping[str, bytes]) -> bytes:
    """The encoded image.

    Raises:
        BadSample: there is no image field.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in fields:
            return fields[extension]
    raise BadSample(Cause.NO_IMAGE)


def labels(fields: Mapping[str, Bytes]) -> Labels:
    """The labels, from `.cls` (one integer, or several between spaces or commas) or else from `.json`
    ({"label": 3}, {"cls": 3}, or {"labels": [3, 7]} with an optional list "weights" or "probabilities" beside it).

    Raises:
        BadSample: no label field, or one that cannot be read.
    """
    try:
        if "cls" in fields:
            return _from_cls(bytes(fields["cls"]))
        if "json" in fields:
            return _from_json(bytes(fields["json"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BadSample(Cause.BAD_LABEL) from error
    raise BadSample(Cause.NO_LABEL)


def checked_labels(fields: Mapping[str, Bytes], num_classes: int, multi_label: bool) -> Labels:
    """The labels, if training can use them.

    Raises:
        BadSample: as `labels`; not exactly one in a single-label set; one that is outside the classes.
    """
    found = labels(fields)
    if not multi_label and len(found.classes) != 1:
        raise BadSample(Cause.SEVERAL)
    if max(found.classes, default=0) >= num_classes:
        raise BadSample(Cause.OUTSIDE)
    return found


def _from_cls(text: bytes) -> Labels:
    words = re.split(r"[\s,]+", text.decode().strip())
    classes = tuple(_class_number(int(word)) for word in words)
    return Labels(classes, (1.0,) * len(classes), is_list=len(classes) > 1)


def _from_json(text: bytes) -> Labels:
    record = json.loads(text)
    if "labels" not in record:
        return Labels((_class_number(record["label"] if "label" in record else record["cls"]),), (1.0,), is_list=False)
    classes = tuple(_class_number(value) for value in record["labels"])
    given = record.get("weights", record.get("probabilities"))
    weights = (1.0,) * len(classes) if given is None else tuple(float(value) for value in given)
    if len(weights) != len(classes):
        raise ValueError("as many weights as labels")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError("weights are finite and not negative")
    return Labels(classes, weights, is_list=True)


def _class_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a class number")
    return value
