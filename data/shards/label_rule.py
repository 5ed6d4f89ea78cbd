"""How the labels of a set are read. The rule is stated when a set is indexed, and kept in its index.

A set whose index states no rule is read as `fields.labels` says, always: runs in progress keep their samples.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from data import bounds
from data.errors import BadSample, Cause
from data.shards import fields
from data.shards.fields import Bytes, Labels, check_count, label_bytes, weights_beside, words_of

NUMBER, NAME, ONE_HOT = "number", "name", "one-hot"
KINDS = (NUMBER, NAME, ONE_HOT)
KEYS = ("labels", "label", "cls")  # of a .json: the first of them that is there
TOLERANCE = 1e-6  # of the zeros and ones of a one-hot list, which may be rounded to float32

_NUMBER = re.compile(r"\+?\d+(\.\d*)?([eE][+-]?\d+)?")
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError)


class Named(NamedTuple):
    """Labels as names of classes. `is_list` as in `Labels`."""

    names: tuple[str, ...]
    is_list: bool


class _Value(NamedTuple):
    """What stands in the place of the label. `record` holds it as its list "labels"; else None."""

    value: Any
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LabelRule:
    """How the labels of a set's samples are read.

    Attributes:
        version: 1 reads as `fields.labels` does; 2 reads all that is clear.
        key: place of the label in `.json`, such as "annotation.category". "": the label is in `.cls`, or else in
            `.json` under the first of `KEYS`, or all of `.json`.
        kind: one of `KINDS`. "": numbers, and lists of numbers under "labels" alone, because a list elsewhere may be
            one-hot.
        classes: length of one-hot lists; 0 if any length is right.
        unlabelled: the set is meant to have no labels.
        class_names: the names of the kind `NAME`, by class number.
    """

    version: int = 2
    key: str = ""
    kind: str = ""
    classes: int = 0
    unlabelled: bool = False
    class_names: Sequence[str] = field(default=(), repr=False)

    @property
    def is_clear(self) -> bool:
        """Whether nothing is stated, so that all that is clear is read."""
        return self.version == 2 and not (self.key or self.kind)

    def labels(self, sample: Mapping[str, Bytes]) -> Labels:
        """The labels of a sample, by the names of its fields.

        Raises:
            BadSample: there are none, or they cannot be read, or they are beyond `bounds`.
        """
        if self.version == 1:
            return fields.labels(sample)
        if self.kind == NAME:
            return self._labels_of_names(self.names(sample))
        try:
            found = self._value(sample)
            return _one_hot(found.value, self.classes) if self.kind == ONE_HOT else self._numbers(found)
        except _UNREADABLE as error:
            raise BadSample(Cause.BAD_LABEL) from error

    def usable(self, sample: Mapping[str, Bytes], num_classes: int, multi_label: bool) -> Labels:
        """The labels of a sample, if training can use them.

        Raises:
            BadSample: as `labels`; not exactly one in a single-label set; one that is outside the classes.
        """
        return self.check(self.labels(sample), num_classes, multi_label)

    def check(self, found: Labels, num_classes: int, multi_label: bool) -> Labels:
        """The same labels, if training can use them.

        Raises:
            BadSample: not exactly one in a single-label set; one that is outside the classes.
        """
        if not multi_label and len(found.classes) != 1:
            raise BadSample(Cause.NO_LABEL if self.kind == ONE_HOT and not found.classes else Cause.SEVERAL)
        if max(found.classes, default=0) >= num_classes:
            raise BadSample(Cause.OUTSIDE)
        return found

    def labels_if_any(self, sample: Mapping[str, Bytes]) -> Labels | None:
        """The labels of a sample; None if none can be read and the set is meant to have none.

        Raises:
            BadSample: as `labels`.
        """
        try:
            return self.labels(sample)
        except BadSample as bad:
            if self.unlabelled and bad.cause in (Cause.NO_LABEL, Cause.BAD_LABEL):
                return None
            raise

    def names(self, sample: Mapping[str, Bytes]) -> Named:
        """The names of a sample's classes, of which `class_names` need not know any.

        Raises:
            BadSample: as `labels`.
        """
        try:
            return _names(self._value(sample).value)
        except _UNREADABLE as error:
            raise BadSample(Cause.BAD_LABEL) from error

    def one_hot_length(self, sample: Mapping[str, Bytes]) -> int:
        """Length of the one-hot list of a sample whose labels can be read."""
        return len(_listed(self._value(sample).value))

    def example(self, sample: Mapping[str, Bytes]) -> str:
        """What a sample has in the place of its label, in a few words for a message."""
        if "json" in sample and (self.key or "cls" not in sample):
            try:
                record = json.loads(label_bytes(sample["json"]))
                for key in (self.key,) if self.key else KEYS if isinstance(record, dict) else ():
                    if (found := _at(record, key)) is not None:
                        return f".json has {key} = {_short(json.dumps(found))}"
                if isinstance(record, dict):
                    return f".json has the keys {_short(', '.join(_keys(record))) or '(none)'}"
                return f".json is {_short(json.dumps(record))}"
            except (*_UNREADABLE, BadSample):
                return f".json is {_short(repr(bytes(sample['json'][:100])))}"
        if "cls" in sample and not self.key:
            return f".cls is {_short(repr(bytes(sample['cls'][:100])))}"
        return f"there are only {_short(' '.join(f'.{extension}' for extension in sample))}"

    def record(self) -> dict[str, Any]:
        """The rule as JSON values, without the names: they are the index's."""
        stated = {"key": self.key, "kind": self.kind, "classes": self.classes, "unlabelled": self.unlabelled}
        return {"version": self.version} | {name: value for name, value in stated.items() if value}

    def identity(self) -> str:
        """A text that differs between rules that may give a sample other labels; "" for the rule of version 1."""
        if self.version == 1:
            return ""
        names = list(self.class_names) if self.kind == NAME else []
        return json.dumps([replace(self, unlabelled=False).record(), names])

    @cached_property
    def _number_by_name(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}

    def _labels_of_names(self, named: Named) -> Labels:
        try:
            classes = tuple(self._number_by_name[name] for name in named.names)
        except KeyError as error:
            raise BadSample(Cause.NO_SUCH_NAME) from error
        return Labels(classes, (1.0,) * len(classes), named.is_list)

    def _value(self, sample: Mapping[str, Bytes]) -> _Value:
        """What stands in the place of the label.

        Raises:
            BadSample: nothing does, or too much to be parsed.
            ValueError and others of `_UNREADABLE`: the field cannot be parsed.
        """
        if "cls" in sample and not self.key:
            return _Value(self._of_text(label_bytes(sample["cls"])))
        if "json" not in sample:
            raise BadSample(Cause.NO_LABEL)
        whole = json.loads(label_bytes(sample["json"]))
        if not self.key and not isinstance(whole, dict):
            return _Value(whole)
        keys = (self.key,) if self.key else KEYS
        key = next((key for key in keys if _at(whole, key) is not None), None)
        if key is None:
            raise BadSample(Cause.NO_LABEL)
        outer, _, inner = key.rpartition(".")
        record = (_at(whole, outer) if outer else whole) if inner == "labels" else None
        return _Value(_at(whole, key), record if isinstance(record, dict) else None)

    def _of_text(self, content: bytes) -> Any:
        """The label of a `.cls`: a list of texts, or what its JSON says, as for `[3, 7]` and `"3"`."""
        text = content.decode(json.detect_encoding(content)).strip()
        if self.kind == NAME:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return lines if len(lines) > 1 else "".join(lines)
        if text.startswith(("[", '"')):
            return json.loads(text)
        if self.kind == ONE_HOT:
            return re.split(r"[\s,]+", text)
        return _words(text)

    def _numbers(self, found: _Value) -> Labels:
        value = found.value
        if found.record is not None and isinstance(value, str):
            value = _words(value)
        if not isinstance(value, list):
            return Labels((class_number(value),), (1.0,), is_list=False)
        if not (found.record is not None or self.kind == NUMBER or isinstance(value, _Words)):
            raise ValueError("a list may be class numbers or one-hot")
        check_count(value)
        classes = tuple(class_number(one) for one in value)
        weights = weights_beside({} if found.record is None else found.record, len(classes))
        return Labels(classes, weights, is_list=True)


FIRST = LabelRule(version=1)
CLEAR = LabelRule()


def parse_rule(record: object, class_names: Sequence[str]) -> LabelRule:
    """The rule of an index: `record` is what `LabelRule.record` gave, or None if it states none.

    Raises:
        ValueError: it is not such a record, or of a later version.
    """
    if record is None:
        return FIRST
    if not isinstance(record, dict):
        raise ValueError("label_rule is no record")
    if record.get("version") not in (1, 2):
        raise ValueError(f"label_rule of version {record.get('version')}, this program reads 1 and 2")
    rule = LabelRule(**{**record, "class_names": class_names})
    readable_key = isinstance(rule.key, str) and len(rule.key) <= bounds.KEY_CHARACTERS
    known = rule.kind in ("", *KINDS) and type(rule.classes) is int and isinstance(rule.unlabelled, bool)
    if not (readable_key and known):
        raise ValueError("label_rule with another key, kind or number of classes than `pack --index-only` writes")
    return rule


class _Words(list[str]):
    """Several words of a text: numbers, which are clear without a stated kind."""


def _words(text: str) -> "str | _Words":
    words = words_of(text)
    return words[0] if len(words) == 1 else _Words(words)


def class_number(value: object) -> int:
    """The class number that a whole number or its text is.

    Raises:
        ValueError: it is none.
        BadSample: it is beyond all classes.
    """
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if _NUMBER.fullmatch(text) and not text.isdecimal() else int(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError(f"{value!r} is not a class number")
    if value >= bounds.CLASSES:
        raise BadSample(Cause.HUGE_LABEL)
    return int(value)


def _one_hot(value: object, length: int) -> Labels:
    """The places of the ones in a list of zeros and ones."""
    array = np.array(_listed(value), np.float64)
    ones = abs(array - 1) <= TOLERANCE
    if array.ndim != 1 or len(array) != (length or len(array)) or not (ones | (abs(array) <= TOLERANCE)).all():
        raise ValueError("not a list of zeros and ones of the right length")
    classes = tuple(np.flatnonzero(ones).tolist())
    check_count(classes)
    return Labels(classes, (1.0,) * len(classes), is_list=len(classes) > 1)


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("no list")
    return value


def _names(value: object) -> Named:
    if isinstance(value, list):
        check_count(value)
        return Named(tuple(_name(one) for one in value), is_list=True)
    return Named((_name(value),), is_list=False)


def _name(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a name")
    name = str(value)
    if not 0 < len(name) <= bounds.CLASS_NAME_CHARACTERS:
        raise ValueError("an empty or very long name")
    return name


def _at(value: Any, key: str) -> Any:
    """The value under a dotted key, None if there is none. A key that holds the dots itself comes first; a number is
    also a place in a list."""
    if isinstance(value, list):
        place, _, rest = key.partition(".")
        if not place.isdecimal() or int(place) >= len(value):
            return None
        return _at(value[int(place)], rest) if rest else value[int(place)]
    if not isinstance(value, dict):
        return None
    if key in value:
        return value[key]
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if (outer := ".".join(parts[:count])) in value:
            return _at(value[outer], ".".join(parts[count:]))
    return None


def _keys(record: Mapping[str, Any], before: str = "") -> list[str]:
    """The dotted keys of a record, those of records in it, too."""
    return [
        key
        for name, value in record.items()
        for key in (_keys(value, f"{before}{name}.") if isinstance(value, dict) and value else [f"{before}{name}"])
    ]


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:200])
    return text if len(text) <= 100 else f"{text[:97]}..."
