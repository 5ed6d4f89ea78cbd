"""Counts over the samples of shards, for the head of their index."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.errors import BadSample
from data.shards.fields import IMAGE_EXTENSIONS, Labels, labels
from data.shards.index import Index, Shard


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
    """

    multi_label: bool = False
    extensions: set[str] = field(default_factory=set)
    unlabelled: int = 0
    without_image: int = 0
    label_counts: Counter[int] = field(default_factory=Counter)
    cut_short: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return max(self.label_counts, default=-1) + 1

    def add(self, fields: Mapping[str, bytes | memoryview]) -> None:
        self.extensions.update(fields)
        self.without_image += not any(extension in fields for extension in IMAGE_EXTENSIONS)
        try:
            found: Labels = labels(fields)
        except BadSample:
            self.unlabelled += 1
            return
        self.label_counts.update(set(found.classes))
        self.multi_label |= found.is_list

    def update(self, other: "Contents") -> None:
        self.multi_label |= other.multi_label
        self.extensions |= other.extensions
        self.unlabelled += other.unlabelled
        self.without_image += other.without_image
        self.label_counts += other.label_counts
        self.cut_short += other.cut_short


def contents_index(url: str, shards: Sequence[Shard], contents: Contents, source: str, num_classes: int = 0) -> Index:
    """The index of shards with these contents.

    Args:
        num_classes: 0 means the largest label + 1. Labels beyond the classes are not counted in the index.
    """
    num_classes = num_classes or contents.num_classes
    return Index(
        url=url,
        shards=tuple(shards),
        num_classes=num_classes,
        multi_label=contents.multi_label,
        extensions=tuple(sorted(contents.extensions)),
        source=source,
        label_counts={label: count for label, count in sorted(contents.label_counts.items()) if label < num_classes},
    )
