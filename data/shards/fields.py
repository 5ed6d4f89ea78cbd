"""The fields of a sample: which one is the image, and the labels as sets without a stated rule hold them."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from data import bounds
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

    Runs in progress depend on what this reads and what it refuses: it stays as it is. `LabelRule` reads more.

    Raises:
        BadSample: no label field, or one that cannot be read or is beyond `bounds`.
    """
    try:
        if "cls" in fields:
            return _from_cls(label_bytes(fields["cls"]))
        if "json" in fields:
            return _from_json(label_bytes(fields["json"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BadSample(Cause.BAD_LABEL) from error
    raise BadSample(Cause.NO_LABEL)


def label_bytes(content: Bytes) -> bytes:
    """A label field's bytes.

    Raises:
        BadSample: too many to be parsed.
    """
    if len(content) > bounds.LABEL_BYTES:
        raise BadSample(Cause.LONG_LABEL)
    return bytes(content)


def words_of(text: str) -> list[str]:
    """The words of a text, between spaces, line ends or commas.

    Raises:
        BadSample: more words than a sample may have labels.
    """
    words = re.split(r"[\s,]+", text.strip(), maxsplit=bounds.LABELS)
    check_count(words)
    return words


def check_count(values: Any) -> None:
    """Check the number of labels of a sample.

    Raises:
        BadSample: there are too many.
    """
    if len(values) > bounds.LABELS:
        raise BadSample(Cause.MANY_LABELS)


def weights_beside(record: Mapping[str, Any], classes: int) -> tuple[float, ...]:
    """The weights of a record's list of labels: its "weights" or "probabilities", or else 1 for each.

    Raises:
        ValueError, TypeError: they are not as many as the labels, or no weights.
    """
    given = record.get("weights", record.get("probabilities"))
    if given is None:
        return (1.0,) * classes
    if len(given) != classes:
        raise ValueError("as many weights as labels")
    weights = tuple(float(value) for value in given)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError("weights are finite and not negative")
    return weights


def _from_cls(text: bytes) -> Labels:
    classes = tuple(_class_number(int(word)) for word in words_of(text.decode()))
    return Labels(classes, (1.0,) * len(classes), is_list=len(classes) > 1)


def _from_json(text: bytes) -> Labels:
    record = json.loads(text)
    if "labels" not in record:
        return Labels((_class_number(record["label"] if "label" in record else record["cls"]),), (1.0,), is_list=False)
    check_count(record["labels"])
    classes = tuple(_class_number(value) for value in record["labels"])
    return Labels(classes, weights_beside(record, len(classes)), is_list=True)


def _class_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a class number")
    return value
