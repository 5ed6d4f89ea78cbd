from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError
from data.sources.classes.holdout import Holdout, hold_out


@pytest.mark.parametrize(
    ("text", "total", "count"), [("0", 10, 0), ("7", 10, 7), ("10%", 200, 20), ("2.5%", 200, 5), ("0%", 9, 0)]
)
def test_texts(text, total, count):
    assert Holdout.parse(text).of(total) == count
    assert bool(Holdout.parse(text).number) == bool(count)


def test_a_percentage_that_is_no_image():
    with pytest.raises(DataError, match=r"--holdout 1% of 20 images is none"):
        Holdout(1, is_percentage=True).of(20)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "100%", "-", "5 %", "%", "x", "1e3"])
def test_other_texts(text):
    with pytest.raises(ValueError, match="neither a number of images nor a percentage"):
        Holdout.parse(text)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data(), st.integers(0, 3))
def test_one_label_an_image(labels, data, seed):
    sizes = Counter(labels)
    count = data.draw(st.integers(0, len(labels) - len(sizes)))
    rows = [(label,) for label in labels]
    held = hold_out(rows, count, seed)
    assert np.array_equal(held, hold_out(rows, count, seed))
    taken = Counter(label for label, one in zip(labels, held, strict=True) if one)
    assert sum(taken.values()) == count
    assert all(taken[label] < size for label, size in sizes.items())
    if min(sizes.values()) * (len(labels) - count) >= len(labels):  # each class can give its share
        for label, size in sizes.items():
            assert abs(taken[label] - count * size / len(labels)) <= 1


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=40), st.integers(1, 10))
def test_any_number_of_labels(rows, count):
    try:
        held = hold_out(rows, count)
    except DataError:
        return
    assert held.sum() == count
    kept = {label for row, one in zip(rows, held, strict=True) if not one for label in row}
    assert kept == {label for row in rows for label in row}


def test_other_seeds_hold_out_other_images():
    rows = [(place % 3,) for place in range(90)]
    assert not np.array_equal(hold_out(rows, 30, 0), hold_out(rows, 30, 1))


def test_too_many():
    with pytest.raises(DataError, match=r"cannot hold out 3 of 4 images.* 2 are the most"):
        hold_out([(0,), (0,), (0,), (1,)], 3)
