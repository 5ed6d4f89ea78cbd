"""Every documented form of a label is read, and sets without a stated rule are read as they always were."""

import json
import math
import pickle
import re
import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import bounds
from data.errors import BadSample, Cause
from data.shards.label_rule import CLEAR, FIRST, KINDS, LabelRule, parse_rule

NUMBERS = st.integers(0, bounds.CLASSES - 1)


def read(rule: LabelRule, fields: dict[str, bytes]) -> tuple | str:
    """The labels, or the cause why there are none."""
    try:
        return tuple(rule.labels(fields))
    except BadSample as bad:
        return bad.cause


# ---- what a person reads ----


def texts_of(number: int) -> list[str]:
    forms = [f"{number}", f"+{number}", f"00{number}", f"{number}.", f"{number}.0", f"{number}.000", f"{number:.18e}"]
    return [*forms, f" {number}\t", f"{number}\n", f"{number}\r\n"]


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@settings(deadline=None)
@given(NUMBERS)
def test_a_number_in_cls(number):
    for text, encoding in product(texts_of(number), ENCODINGS):
        assert read(CLEAR, {"cls": text.encode(encoding)}) == ((number,), (1.0,), False), (text, encoding)
        assert read(LabelRule(kind="number"), {"cls": text.encode(encoding)}) == ((number,), (1.0,), False)
    assert read(CLEAR, {"cls": f'"{number}"'.encode()}) == ((number,), (1.0,), False)
    for mark in (b"\xff\xfe", b"\xfe\xff"):
        text = str(number).encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
        assert read(CLEAR, {"cls": mark + text}) == ((number,), (1.0,), False)


@settings(deadline=None)
@given(NUMBERS)
def test_a_number_in_json(number):
    values = [number, float(number), *texts_of(number)]
    for value in values:
        for record in (value, {"label": value}, {"cls": value, "caption": "a 5"}, {"labels": value}):
            for indent, encoding in product((None, 2), ENCODINGS):
                fields = {"json": json.dumps(record, indent=indent).encode(encoding), "txt": b"7"}
                expected = (number,)
                assert read(CLEAR, fields)[0] == expected, record


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=5), st.data())
def test_several_numbers(numbers, data):
    ones = (1.0,) * len(numbers)
    texts = [data.draw(st.sampled_from(texts_of(number))).strip() for number in numbers]
    for gap in (" ", ",", ", ", "\n", "\r\n", " \t "):
        for encoding in ENCODINGS:
            text = gap.join(texts)
            assert read(CLEAR, {"cls": text.encode(encoding)}) == (tuple(numbers), ones, True)
    values = [data.draw(st.sampled_from([number, float(number), str(number)])) for number in numbers]
    weights = data.draw(st.lists(st.floats(0, 1), min_size=len(numbers), max_size=len(numbers)))
    assert read(CLEAR, {"json": json.dumps({"labels": values}).encode()}) == (tuple(numbers), ones, True)
    for name in ("weights", "probabilities"):
        record = json.dumps({"labels": values, name: weights}).encode()
        assert read(CLEAR, {"json": record}) == (tuple(numbers), tuple(weights), True)
        nested = json.dumps({"a": {"labels": values, name: weights}, name: [7]}).encode()
        assert read(LabelRule(key="a.labels"), {"json": nested}) == (tuple(numbers), tuple(weights), True)
    for record in (values, {"label": values}, {"cls": values}):
        fields = {"json": json.dumps(record).encode()}
        assert read(CLEAR, fields) == Cause.BAD_LABEL  # they may be one-hot
        assert read(LabelRule(kind="number"), fields) == (tuple(numbers), ones, True)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"cls": b""}, Cause.BAD_LABEL),
        ({"cls": b"-1"}, Cause.BAD_LABEL),
        ({"cls": b"-0.5"}, Cause.BAD_LABEL),
        ({"cls": b"2.5"}, Cause.BAD_LABEL),
        ({"cls": b"nan"}, Cause.BAD_LABEL),
        ({"cls": b"inf"}, Cause.BAD_LABEL),
        ({"cls": b"1e999"}, Cause.BAD_LABEL),
        ({"cls": b"0x3"}, Cause.BAD_LABEL),
        ({"cls": b"dog"}, Cause.BAD_LABEL),
        ({"cls": b"\xff\xfe"}, Cause.BAD_LABEL),
        ({"cls": b"\x80"}, Cause.BAD_LABEL),
        ({"cls": b"[3, 7]"}, Cause.BAD_LABEL),
        ({"cls": b"16777216"}, Cause.HUGE_LABEL),
        ({"cls": b"2000000000"}, Cause.HUGE_LABEL),
        ({"cls": b"1e300"}, Cause.HUGE_LABEL),
        ({"json": b'{"label": 16777216}'}, Cause.HUGE_LABEL),
        ({"json": b'{"labels": [1, 16777216.0]}'}, Cause.HUGE_LABEL),
        ({"json": b'{"label": true}'}, Cause.BAD_LABEL),
        ({"json": b'{"label": NaN}'}, Cause.BAD_LABEL),
        ({"json": b'{"label": Infinity}'}, Cause.BAD_LABEL),
        ({"json": b'{"label": {"id": 3}}'}, Cause.BAD_LABEL),
        ({"json": b'{"label": "3 7"}'}, Cause.BAD_LABEL),
        ({"json": b'{"label": null}'}, Cause.NO_LABEL),
        ({"json": b'{"caption": "3"}'}, Cause.NO_LABEL),
        ({"json": b"null"}, Cause.BAD_LABEL),
        ({"json": b"[0, 1]"}, Cause.BAD_LABEL),
        ({"json": b'{"labels": [1, 2], "weights": [1]}'}, Cause.BAD_LABEL),
        ({"json": b'{"labels": [1, 2], "weights": [1, -1]}'}, Cause.BAD_LABEL),
        ({"json": b"[" * 100_000}, Cause.BAD_LABEL),
        ({"txt": b"3"}, Cause.NO_LABEL),
    ],
)
def test_what_is_not_clear_is_no_label(fields, cause):
    assert read(CLEAR, fields) == cause


# ---- stated once ----


@pytest.mark.parametrize(
    ("rule", "fields", "expected"),
    [
        ({"key": "a.b"}, {"json": b'{"a": {"b": 3}, "label": 5}'}, (3,)),
        ({"key": "a.b"}, {"json": b'{"a": {"b": "3.0"}}', "cls": b"9"}, (3,)),
        ({"key": "a.b"}, {"json": b'{"a.b": 4, "a": {"b": 3}}'}, (4,)),
        ({"key": "a.b.c"}, {"json": b'{"a.b": {"c": 6}}'}, (6,)),
        ({"key": "a.b.c"}, {"json": b'{"a": {"b.c": 6}}'}, (6,)),
        ({"key": "a.1.b"}, {"json": b'{"a": [{"b": 2}, {"b": 3}]}'}, (3,)),
        ({"key": "1"}, {"json": b"[2, 8]"}, (8,)),
        ({"key": "a.b"}, {"json": b'{"a": {"c": 3}}', "cls": b"9"}, Cause.NO_LABEL),
        ({"key": "a.b"}, {"json": b'{"a": 3}'}, Cause.NO_LABEL),
        ({"key": "a.9"}, {"json": b'{"a": [3]}'}, Cause.NO_LABEL),
        ({"key": "a"}, {"cls": b"9"}, Cause.NO_LABEL),
        ({"key": "a"}, {"json": b"{"}, Cause.BAD_LABEL),
        ({"key": "a"}, {"json": b'{"a": [3, 4]}'}, Cause.BAD_LABEL),
        ({"key": "a", "kind": "number"}, {"json": b'{"a": [3, 4]}'}, (3, 4)),
        ({"key": "a", "kind": "one-hot"}, {"json": b'{"a": [0, 0, 1]}'}, (2,)),
        ({"kind": "one-hot"}, {"json": b"[0.0, 1.0, 0.0]"}, (1,)),
        ({"kind": "one-hot"}, {"json": b'{"label": [1e-08, 0.99999994, 0]}'}, (1,)),
        ({"kind": "one-hot"}, {"json": b'{"label": [false, true]}'}, (1,)),
        ({"kind": "one-hot"}, {"cls": b"0 0 1 0\r\n"}, (2,)),
        ({"kind": "one-hot"}, {"cls": b"[0, 0, 1.0]"}, (2,)),
        ({"kind": "one-hot"}, {"json": b"[1, 0, 1]"}, (0, 2)),
        ({"kind": "one-hot"}, {"json": b"[0, 0, 0]"}, ()),
        ({"kind": "one-hot"}, {"json": b"[0.3, 0.7]"}, Cause.BAD_LABEL),
        ({"kind": "one-hot"}, {"json": b"[[0, 1]]"}, Cause.BAD_LABEL),
        ({"kind": "one-hot"}, {"json": b"[0, null]"}, Cause.BAD_LABEL),
        ({"kind": "one-hot"}, {"json": b"[0, -1]"}, Cause.BAD_LABEL),
        ({"kind": "one-hot"}, {"json": b"[]"}, Cause.BAD_LABEL),
        ({"kind": "one-hot"}, {"json": b"1"}, Cause.BAD_LABEL),
        ({"kind": "one-hot", "classes": 3}, {"json": b"[0, 1]"}, Cause.BAD_LABEL),
        ({"kind": "name"}, {"cls": "\ufeffcrème brûlée \r\n".encode()}, (1,)),
        ({"kind": "name"}, {"json": b'"a cat, a dog"'}, (0,)),
        ({"kind": "name"}, {"json": b'{"label": "a cat, a dog"}'}, (0,)),
        ({"kind": "name"}, {"json": b'{"labels": ["7", "a cat, a dog"]}'}, (2, 0)),
        ({"kind": "name"}, {"json": b'{"label": 7}'}, (2,)),
        ({"kind": "name"}, {"cls": b"a cat, a dog\n7\n"}, (0, 2)),
        ({"kind": "name"}, {"cls": b"bird"}, Cause.NO_SUCH_NAME),
        ({"kind": "name"}, {"cls": b" "}, Cause.BAD_LABEL),
        ({"kind": "name"}, {"cls": b"x" * 1001}, Cause.BAD_LABEL),
        ({"kind": "name"}, {"json": b'{"label": {"name": "7"}}'}, Cause.BAD_LABEL),
        ({"kind": "name", "key": "label.name"}, {"json": b'{"label": {"name": "7"}}'}, (2,)),
    ],
)
def test_what_is_stated(rule, fields, expected):
    stated = LabelRule(**rule, class_names=("a cat, a dog", "crème brûlée", "7"))
    for one in (stated, pickle.loads(pickle.dumps(stated)), parse_rule(stated.record(), stated.class_names)):
        found = read(one, fields)
        assert (found if isinstance(expected, str) else found[0]) == expected
        assert json.loads(json.dumps(one.record())) == one.record()


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_one_hot_of_any_float(length, data):
    """Against numpy's argmax, in every type that a list may have been before it became JSON."""
    place = data.draw(st.integers(0, length - 1))
    for kind in (np.float16, np.float32, np.float64, np.int64, np.uint8, bool):
        vector = np.zeros(length, kind)
        vector[place] = 1
        assert read(LabelRule(kind="one-hot"), {"json": json.dumps(vector.tolist()).encode()})[0] == (vector.argmax(),)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(0, 9) | st.dictionaries(st.text(), st.integers(0, 9)), max_size=4))
def test_every_key_can_be_stated(record):
    for name, value in record.items():
        inner = {name: value} if isinstance(value, int) else {f"{name}.{key}": one for key, one in value.items()}
        for key, number in inner.items():
            if key and key not in record.keys() - {name}:
                assert read(LabelRule(key=key), {"json": json.dumps(record).encode()})[0] == (number,)


@pytest.mark.parametrize(
    "record",
    [
        3,
        [],
        {},
        {"version": 3},
        {"version": 2, "kind": "x"},
        {"version": 2, "key": 3},
        {"version": 2, "new": 1},
        {"version": 2, "unlabelled": "yes"},
        {"version": 2, "classes": "7"},
        {"version": 2, "kind": []},
        {"version": 2, "key": "a." * 501},
    ],
)
def test_a_rule_that_is_none(record):
    with pytest.raises((ValueError, TypeError)):
        parse_rule(record, ())


def test_identities():
    """Two rules have one identity only if they give all samples the same labels."""
    assert FIRST.identity() == LabelRule(version=1, unlabelled=True).identity() == ""
    assert CLEAR.identity() == LabelRule(unlabelled=True).identity()
    rules = [LabelRule(key=key, kind=kind) for key in ("", "a") for kind in ("", *KINDS)]
    rules += [LabelRule(kind="name", class_names=names) for names in (("a", "b"), ("b", "a"), ("a, b",))]
    assert len({rule.identity() for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    ("found", "multi", "expected"),
    [("3", False, (3,)), ("3 4", False, Cause.SEVERAL), ("3 4", True, (3, 4)), ("3 5", True, Cause.OUTSIDE)],
)
def test_usable(found, multi, expected):
    fields = {"cls": found.encode()}
    if isinstance(expected, tuple):
        assert CLEAR.usable(fields, 5, multi).classes == expected
    else:
        with pytest.raises(BadSample, match=expected):
            CLEAR.usable(fields, 5, multi)


# ---- bounds ----


@pytest.mark.parametrize("rule", [FIRST, CLEAR, LabelRule(kind="number"), LabelRule(kind="name")])
def test_bounds_of_a_sample(rule):
    """Five million labels are refused before they are parsed; ten thousand are read."""
    full, many, endless = bounds.LABELS, bounds.LABELS + 1, 5_000_000
    for form in (lambda n: {"cls": b"1 " * n}, lambda n: {"json": b'{"labels": [1' + b", 1" * (n - 1) + b"]}"}):
        fields = form(full)
        if rule.kind != "name":
            assert len(rule.labels(fields).classes) == full
            assert read(rule, form(many)) == Cause.MANY_LABELS
        tracemalloc.start()
        with pytest.raises(BadSample):
            rule.labels(form(endless))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 << 20  # the field itself and a copy
    assert read(rule, {"json": b'{"label": 3, "x": "' + b" " * (bounds.LABEL_BYTES - 40) + b'"}'}) != Cause.LONG_LABEL
    assert read(rule, {"json": b'{"label": 3, "x": "' + b" " * bounds.LABEL_BYTES + b'"}'}) == Cause.LONG_LABEL


def test_a_long_one_hot_list_has_one_label():
    fields = {"json": json.dumps([0.0] * 500_000 + [1.0]).encode()}
    assert read(LabelRule(kind="one-hot"), fields)[0] == (500_000,)
    assert read(LabelRule(kind="one-hot"), {"json": json.dumps([1] * 10_001).encode()}) == Cause.MANY_LABELS


# ---- the rule of version 1 ----


def labels_before(fields: dict[str, bytes]) -> tuple | str:
    """A copy of the only rule there was, before indexes stated one."""

    def class_number(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise ValueError(f"{value!r} is not a class number")
        return value

    def from_cls(text: bytes) -> tuple:
        words = re.split(r"[\s,]+", text.decode().strip())
        classes = tuple(class_number(int(word)) for word in words)
        return classes, (1.0,) * len(classes), len(classes) > 1

    def from_json(text: bytes) -> tuple:
        record = json.loads(text)
        if "labels" not in record:
            return (class_number(record["label"] if "label" in record else record["cls"]),), (1.0,), False
        classes = tuple(class_number(value) for value in record["labels"])
        given = record.get("weights", record.get("probabilities"))
        weights = (1.0,) * len(classes) if given is None else tuple(float(value) for value in given)
        if len(weights) != len(classes):
            raise ValueError("as many weights as labels")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError("weights are finite and not negative")
        return classes, weights, True

    try:
        if "cls" in fields:
            return from_cls(fields["cls"])
        if "json" in fields:
            return from_json(fields["json"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Cause.BAD_LABEL
    return Cause.NO_LABEL


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**32) | st.floats() | st.sampled_from(["3", "3.0", "dog", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "a"]), inner, max_size=3),
    max_leaves=6,
)
RECORDS = VALUES | st.dictionaries(
    st.sampled_from(["label", "labels", "cls", "weights", "probabilities", "caption"]),
    VALUES | st.lists(st.integers(0, 9) | st.floats(0, 1), max_size=4),
)
TEXTS = st.text('0123456789 .,+-e_\r\n\t\ufeff"[]', max_size=12)
SAMPLES = st.fixed_dictionaries(
    {},
    optional={
        "cls": st.builds(str.encode, TEXTS, st.sampled_from(ENCODINGS)) | st.binary(max_size=6),
        "json": st.builds(
            lambda record, encoding: json.dumps(record).encode(encoding), RECORDS, st.sampled_from(ENCODINGS)
        )
        | TEXTS.map(str.encode),
        "txt": st.just(b"7"),
    },
)


@given(SAMPLES)
def test_without_a_rule_nothing_changes(fields):
    assert read(FIRST, fields) == labels_before(fields)
    assert read(parse_rule(None, ()), fields) == labels_before(fields)


@given(SAMPLES)
def test_what_was_read_is_still_read_the_same(fields):
    """Beyond the bounds, and of an object or a text as the list "labels", it is not."""
    before, now = labels_before(fields), read(CLEAR, fields)
    if isinstance(before, tuple) and now != before:
        huge = max(before[0], default=0) >= bounds.CLASSES
        assert (now == Cause.HUGE_LABEL) if huge else not isinstance(json.loads(fields["json"])["labels"], list)
