"""The VTAB tasks whose labels are no feature of a data set, but derived from others, as by the benchmark's authors.

VTAB is Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark"
(2019); the thresholds are those of its code, google-research/task_adaptation. The other tasks' labels are features.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.errors import BadSample, Cause

Row = Mapping[str, Any]


class Task(NamedTuple):
    """One task: TFDS's name of the data set, number of classes, label of a row, change of the stored image."""

    dataset: str
    num_classes: int
    label: Callable[[Row], int]
    image: Callable[[bytes], bytes] = bytes


def task_label(task: Task, row: Row) -> int:
    """The label of a row.

    Raises:
        BadSample: the row has none: it holds no object, or a distance in no interval.
    """
    try:
        return task.label(row)
    except (ValueError, IndexError) as error:
        raise BadSample(Cause.BAD_LABEL) from error


def _interval(value: float, bounds: tuple[float, ...]) -> int:
    """Number of the last bound that is below the value."""
    return int(np.flatnonzero(np.array(bounds) < value)[-1])


def _clevr_count(row: Row) -> int:
    return len(row["objects"]["size"]) - 3  # there are 3 to 10


def _clevr_distance(row: Row) -> int:
    nearest = np.asarray(row["objects"]["pixel_coords"])[:, 2].min()
    return _interval(nearest, (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def _kitti_distance(row: Row) -> int:
    depth, kind = np.asarray(row["objects"]["location"]).reshape(-1, 3)[:, 2], np.asarray(row["objects"]["type"])
    nearest = min(
        [*depth[kind < 3], 1000.0]
    )  # cars, vans and trucks, in metres; images without one have a class of their own
    return _interval(nearest, (-100.0, 8.0, 20.0, 999.0))


def _dsprites_location(row: Row) -> int:
    return int(row["label_x_position"]) * 16 // 32


def _dsprites_orientation(row: Row) -> int:
    return int(row["label_orientation"]) * 16 // 40


def _white(encoded: bytes) -> bytes:
    """dSprites holds zeros and ones: make the ones white."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise BadSample(Cause.UNDECODABLE)
    return bytes(cv2.imencode(".png", pixels * 255)[1].tobytes())


TASKS = {
    "clevr-count": Task("clevr", 8, _clevr_count),
    "clevr-distance": Task("clevr", 6, _clevr_distance),
    "kitti-distance": Task("kitti", 4, _kitti_distance),
    "dsprites-location": Task("dsprites", 16, _dsprites_location, _white),
    "dsprites-orientation": Task("dsprites", 16, _dsprites_orientation, _white),
}
