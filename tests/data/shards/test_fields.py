import pytest

from data.errors import BadSample
from data.shards.fields import image_bytes, labels


@pytest.mark.parametrize(
    ("fields", "classes", "weights", "is_list"),
    [
        ({"cls": b"7"}, (7,), (1.0,), False),
        ({"cls": b" 18290\n"}, (18290,), (1.0,), False),
        ({"cls": b"3 5\n8"}, (3, 5, 8), (1.0, 1.0, 1.0), True),
        ({"cls": b"3, 5,8"}, (3, 5, 8), (1.0, 1.0, 1.0), True),
        ({"json": b'{"label": 4, "width": 10}'}, (4,), (1.0,), False),
        ({"json": b'{"cls": 4}'}, (4,), (1.0,), False),
        ({"json": b'{"labels": [2]}'}, (2,), (1.0,), True),
        ({"json": b'{"labels": []}'}, (), (), True),
        ({"json": b'{"labels": [2, 9], "weights": [0.5, 1]}'}, (2, 9), (0.5, 1.0), True),
        ({"json": b'{"labels": [2, 9], "probabilities": [0.25, 0.75]}'}, (2, 9), (0.25, 0.75), True),
        ({"cls": b"1", "json": b'{"label": 2}'}, (1,), (1.0,), False),
        ({"cls": memoryview(b"1")}, (1,), (1.0,), False),
    ],
)
def test_spellings(fields, classes, weights, is_list):
    assert labels(fields) == (classes, weights, is_list)


@pytest.mark.parametrize(
    "fields",
    [
        {"cls": b""},
        {"cls": b"cat"},
        {"cls": b"-1"},
        {"cls": b"1.5"},
        {"cls": b"\xff\xfe"},
        {"json": b"{"},
        {"json": b"[1]"},
        {"json": b"7"},
        {"json": b'{"label": "7"}'},
        {"json": b'{"label": true}'},
        {"json": b'{"label": null}'},
        {"json": b'{"labels": 7}'},
        {"json": b'{"labels": [1, 2], "weights": [1]}'},
        {"json": b'{"width": 3}'},
    ],
)
def test_unreadable(fields):
    with pytest.raises(BadSample, match="unreadable label"):
        labels(fields)


def test_missing():
    with pytest.raises(BadSample, match="no label"):
        labels({"txt": b"1"})
    with pytest.raises(BadSample, match="no image"):
        image_bytes({"gif": b"1"})
    assert image_bytes({"cls": b"1", "webp": b"w"}) == b"w"
