"""Counts over the samples of shards, for the head of their index."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from data.errors import BadSample
from data.shards.fields import IMAGE_EXTENSIONS, Labels
from data.shards.index import Index, Shard
from data.shards.label_rule import CLEAR, FIRST, NAME, ONE_HOT, LabelRule

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Contents:
    """Counts over the samples seen so far. `update` adds those of other shards.

    Attributes:
        multi_label: whether some sample's labels are written as a list.
        extensions: names of all fields.
        unlabelled: samples without readable labels.
        without_image: samples without an image field.
        label_counts: images that carry each label.
        cut_short: URLs of shards that end in the middle of an entry.
        labelled: samples with readable labels.
        causes: samples without, by `Cause`.
        example: what the first of them has in the place of its label.
        name_counts: images that carry each name of a class, while the names have no numbers.
        all_zero: samples whose one-hot list has no one.
        shortest, longest: lengths of the one-hot lists.
        only_clear: samples that the label rule of version 1 reads otherwise, or not at all.
    """

    multi_label: bool = False
    extensions: set[str] = field(default_factory=set)
    unlabelled: int = 0
    without_image: int = 0
    label_counts: Counter[int] = field(default_factory=Counter)
    cut_short: list[str] = field(default_factory=list)
    labelled: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    example: str = ""
    name_counts: Counter[str] = field(default_factory=Counter)
    all_zero: int = 0
    shortest: int = 0
    longest: int = 0
    only_clear: int = 0

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return max(self.label_counts, default=-1) + 1

    def add(self, fields: Mapping[str, bytes | memoryview], rule: LabelRule = CLEAR) -> None:
        self.extensions.update(fields)
        self.without_image += not any(extension in fields for extension in IMAGE_EXTENSIONS)
        found: Labels | None = None
        try:
            found = self._add_labels(fields, rule)
        except BadSample as bad:
            self.unlabelled += 1
            self.causes[bad.cause] += 1
            self.example = self.example or rule.example(fields)
        if rule.is_clear:
            self.only_clear += found != _first_labels(fields)

    def _add_labels(self, fields: Mapping[str, bytes | memoryview], rule: LabelRule) -> Labels | None:
        """Count the labels of a sample. None: they are names without numbers."""
        if rule.kind == NAME and not rule.class_names:
            named = rule.names(fields)
            self.name_counts.update(set(named.names))
            self.multi_label |= named.is_list
            self.labelled += 1
            return None
        found = rule.labels(fields)
        self.label_counts.update(set(found.classes))
        self.multi_label |= found.is_list
        self.labelled += 1
        if rule.kind == ONE_HOT:
            length = rule.one_hot_length(fields)
            self.shortest, self.longest = min(self.shortest or length, length), max(self.longest, length)
            self.all_zero += not found.classes
        return found

    def update(self, other: "Contents") -> None:
        self.multi_label |= other.multi_label
        self.extensions |= other.extensions
        self.unlabelled += other.unlabelled
        self.without_image += other.without_image
        self.label_counts += other.label_counts
        self.cut_short += other.cut_short
        self.labelled += other.labelled
        self.causes += other.causes
        self.example = self.example or other.example
        self.name_counts += other.name_counts
        self.all_zero += other.all_zero
        self.shortest = min(self.shortest or other.shortest, other.shortest or self.shortest)
        self.longest = max(self.longest, other.longest)
        self.only_clear += other.only_clear


def _first_labels(fields: Mapping[str, bytes | memoryview]) -> Labels | None:
    try:
        return FIRST.labels(fields)
    except BadSample:
        return None


def contents_index(
    url: str,
    shards: Sequence[Shard],
    contents: Contents,
    source: str,
    num_classes: int = 0,
    *,
    rule: LabelRule = CLEAR,
    class_names: Sequence[str] = (),
    about: Mapping[str, Any] = NOTHING,
) -> Index:
    """The index of shards with these contents.

    Args:
        num_classes: 0 means the largest label + 1. Labels beyond the classes are not counted in the index.
        rule: by which the labels were counted. The index states it only if `FIRST` would give another label to some
            sample: so sets without such samples keep their index, and the runs on them their samples.
        class_names: by class number.
        about: notes for the index.
    """
    num_classes = num_classes or contents.num_classes
    if rule.is_clear and not contents.only_clear:
        rule = replace(FIRST, unlabelled=rule.unlabelled)
    stated = {} if rule == FIRST else {"label_rule": rule.record()}
    return Index(
        url=url,
        shards=tuple(shards),
        num_classes=num_classes,
        multi_label=contents.multi_label,
        extensions=tuple(sorted(contents.extensions)),
        source=source,
        label_counts={label: count for label, count in sorted(contents.label_counts.items()) if label < num_classes},
        class_names=tuple(class_names),
        about={**about, **stated},
    )
