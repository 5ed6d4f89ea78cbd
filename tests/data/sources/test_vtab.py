"""Labels by the benchmark's own definitions, computed by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from data.errors import BadSample, Cause
from data.sources.vtab import TASKS, task_label


@pytest.mark.parametrize(
    ("depths", "label"),
    [((3.0, 50.0), 0), ((7.9,), 0), ((8.1,), 1), ((30.0, 19.0), 1), ((20.5,), 2), ((900.0,), 2), ((), 3)],
)
def test_distance_of_the_nearest_vehicle(depths, label):
    """Cars, vans and trucks (types 0 to 2) count; the pedestrian (3) in front of them does not."""
    objects = {
        "type": [*(place % 3 for place in range(len(depths))), 3],
        "location": [*((1.0, 2.0, depth) for depth in depths), (0.0, 0.0, 1.0)],
    }
    assert TASKS["kitti-distance"].label({"objects": objects}) == label


def test_kitti_without_any_object():
    assert TASKS["kitti-distance"].label({"objects": {"type": np.zeros(0), "location": np.zeros((0, 3))}}) == 3


@pytest.mark.parametrize(("nearest", "label"), [(7.0, 0), (8.2, 1), (8.7, 2), (9.3, 3), (9.9, 4), (12.0, 5)])
def test_distance_of_the_nearest_object(nearest, label):
    objects = {"pixel_coords": [[1.0, 2.0, 99.0], [5.0, 1.0, nearest]]}
    assert TASKS["clevr-distance"].label({"objects": objects}) == label


def test_dsprites():
    """32 places and 40 angles, in 16 groups; ones become white."""
    location, orientation = TASKS["dsprites-location"], TASKS["dsprites-orientation"]
    groups = [location.label({"label_x_position": place}) for place in range(32)]
    assert groups == [place // 2 for place in range(32)]
    groups = [orientation.label({"label_orientation": place}) for place in range(40)]
    assert groups == [int(place // 2.5) for place in range(40)]
    pixels = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(location.image(file.getvalue())))), pixels * 255)


@pytest.mark.parametrize("objects", [{"pixel_coords": np.zeros((0, 3))}, {"pixel_coords": [[1.0, 2.0, 0.0]]}])
def test_a_row_without_the_derived_label_is_a_bad_sample(objects):
    """No object at all, and a distance that is in no interval. The other rows are packed."""
    with pytest.raises(BadSample, match=Cause.BAD_LABEL):
        task_label(TASKS["clevr-distance"], {"objects": objects})
