"""What indexing learns about the labels of a whole set: names of classes, lengths of lists, or that there are none."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data import bounds
from data.errors import DataError
from data.shards.contents import Contents
from data.shards.label_rule import NAME, ONE_HOT, LabelRule

_ADVICE = "say where the label is with --label-key and what it is with --label-kind (number, name or one-hot)"


def check_names(url: str, contents: Contents) -> None:
    """Check the number of names so far.

    Raises:
        DataError: there are more than classes have.
    """
    if len(contents.name_counts) > bounds.CLASS_NAMES:
        name = next(iter(contents.name_counts))
        raise DataError(f"{url}: more than {bounds.CLASS_NAMES:,} names of classes, such as {name!r}; {_ADVICE}")


def check_labelled(url: str, contents: Contents) -> None:
    """Check that some sample has a readable label.

    Raises:
        DataError: none has.
    """
    if not contents.labelled:
        causes = ", ".join(f"{count:,} x {cause}" for cause, count in contents.causes.most_common())
        raise DataError(
            f"{url}: no sample has a readable label ({causes}); in the first {contents.example}; {_ADVICE}, "
            "or that there is none with --unlabelled"
        )


def concluded(
    url: str, contents: Contents, rule: LabelRule, class_names: Sequence[str]
) -> tuple[LabelRule, Sequence[str]]:
    """The rule that the index keeps, and the names of the classes by number.

    Adds to `contents` the labels that names stand for, once these have numbers.

    Raises:
        DataError: names that are all numbers; one-hot lists of several lengths.
    """
    if rule.kind == NAME and not class_names:
        class_names = _numbered(url, contents.name_counts)
        contents.label_counts = Counter({label: contents.name_counts[name] for label, name in enumerate(class_names)})
        rule = replace(rule, class_names=tuple(class_names))
    if rule.kind == ONE_HOT:
        if contents.shortest != contents.longest:
            raise DataError(
                f"{url}: one-hot lists of {contents.shortest:,} to {contents.longest:,} numbers; give the right length "
                "with --num-classes, and samples with another will be masked"
            )
        rule = replace(rule, classes=contents.longest)
        if not contents.multi_label:
            contents.unlabelled += contents.all_zero
    return rule, class_names


def _numbered(url: str, counts: Counter[str]) -> list[str]:
    """The names in sorted order."""
    if counts and all(re.fullmatch(r"[+-]?\d+(\.\d*)?", name) for name in counts):
        raise DataError(
            f"{url}: the names of the classes are all numbers, such as {next(iter(counts))!r}, and sorted as text they "
            "would get others; use --label-kind number, or give the names in their order with --classes"
        )
    return sorted(counts)
