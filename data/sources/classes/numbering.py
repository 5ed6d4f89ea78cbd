"""The number of each class, from the names of folders or from the labels of a table.

The names decide, not the images that happen to be there: a folder without images has its number, too. Numbers count
from 0. Names that are not numbers are numbered in sorted order, as in torchvision's ImageFolder. A list of class names
(`--classes`) comes before both rules: then a class's number is its place in the list.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from data import bounds
from data.errors import DataError
from data.shards.class_names import ClassList, shown

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,9})?")
MISSING_WORDS = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # in a column of numbers, in lower case
SAY = "say which with --classes FILE: the name of each class, one a line, in the order of their numbers"


class Numbering(NamedTuple):
    """What the names say.

    Attributes:
        numbers: the number of each name, as it was found. A label that means a missing value has none.
        class_names: by class number; empty if the labels are numbers without names.
        num_classes: how many there are.
        warnings: what a person may have meant otherwise, one line each.
    """

    numbers: Mapping[str, int]
    class_names: Sequence[str]
    num_classes: int
    warnings: Sequence[str] = ()


def number_folders(
    names: Collection[str], where: str, given: ClassList | None = None, *, what: str = "folders", advice: str = SAY
) -> Numbering:
    """Number class folders, or class tars.

    Args:
        names: of the folders, each once.
        where: the folder that holds them, for messages.
        given: the list of classes.
        what: they are, for messages.
        advice: what to do if numbers as names leave open what they mean.

    Raises:
        DataError: a folder is not in the list, or numbers as names leave open what they mean.
    """
    names = sorted(names)
    if given is not None:
        numbers = _places(names, given)
        if (name := next((name for name in names if name not in numbers), None)) is not None:
            raise DataError(
                f"{where}: the folder {shown(name)} is no class of {given.url}; add it there, or move it away"
            )
        _refuse_twins({name: numbers[name] for name in names}, where, f"folders of {given.url}", "merge or rename one")
        return Numbering(numbers, given.names, len(given.names))
    if names and all(name.isdecimal() for name in names):
        return _own_numbers(names, where, what, advice)
    if names and all(_is_number(name) for name in names):
        odd = next(name for name in names if not name.isdecimal())
        raise DataError(f"{where}: the {what} are numbers, but {shown(odd)} is no class number, 0, 1, 2 ...; {advice}")
    return _sorted(names, what)


def number_labels(
    rows: Sequence[Sequence[str]], paths: Sequence[str], table: str, given: ClassList | None = None
) -> Numbering:
    """Number the labels of a table.

    Args:
        rows: the labels of each row.
        paths: the image of each row, for messages.
        table: its URL, for messages.
        given: the list of classes. Labels are names in it; or, if none is, numbers of its classes.

    Raises:
        DataError: a label is no class of the list, or a number that no class can have.
    """
    first: dict[str, int] = {}  # the first row of each label
    for place, row in enumerate(rows):
        for label in row:
            first.setdefault(label, place)
    said = [label for label in first if label.strip().lower() not in MISSING_WORDS]
    are_numbers = all(_is_number(label) for label in said)

    def at(label: str) -> str:
        return f"{table}: row {first[label] + 1:,} ({shown(paths[first[label]])}): label {shown(label)}"

    if given is not None:
        places = _places(first, given)
        named = [label for label in said if label in places]
        if named or not are_numbers:
            if (stray := next((label for label in said if label not in places), None)) is not None:
                raise DataError(f"{at(stray)} is no class of {given.url}; add it there, or remove the row")
            return Numbering(
                {label: places[label] for label in first if label in places}, given.names, len(given.names)
            )
    if not said:
        return Numbering({}, (), 0)
    if not are_numbers:
        return _sorted([label for label in first if label.strip()], "labels")
    numbers: dict[str, int] = {}
    for label in said:
        value = Decimal(label.strip())
        if not 0 <= value < bounds.CLASSES or value != value.to_integral_value():
            raise DataError(
                f"{at(label)} is no class number (0, 1, 2 ...); number the classes from 0, or remove the row; "
                "if the labels are names, give all of them with --classes"
            )
        if given is not None and value >= len(given.names):
            raise DataError(f"{at(label)} is not below {len(given.names):,}, the number of classes of {given.url}")
        numbers[label] = int(value)
    return Numbering(numbers, given.names if given else (), len(given.names) if given else max(numbers.values()) + 1)


def _own_numbers(names: Sequence[str], where: str, what: str, advice: str) -> Numbering:
    numbers = {name: int(name) for name in names}
    _refuse_twins(numbers, where, what, advice)
    largest = max(numbers.values())
    if largest >= 2 * len(names):
        raise DataError(
            f"{where}: are the {what} {_some(names)} class numbers or names? The largest, {largest}, is not below "
            f"twice their count, {len(names)}; {advice}"
        )
    own, width = {number: name for name, number in numbers.items()}, min(map(len, names))
    return Numbering(numbers, [own.get(number, str(number).zfill(width)) for number in range(largest + 1)], largest + 1)


def _refuse_twins(numbers: Mapping[str, int], where: str, what: str, advice: str) -> None:
    """Raise DataError if two names have one number."""
    first: dict[int, str] = {}
    for name, number in numbers.items():
        if number in first:
            raise DataError(
                f"{where}: {shown(first[number])} and {shown(name)} are both class {number} of the {what}; {advice}"
            )
        first[number] = name


def _sorted(names: Collection[str], what: str) -> Numbering:
    ordered = sorted(names)
    numbers = {name: number for number, name in enumerate(ordered)}
    warnings = []
    if moved := [name for name in ordered if _is_number(name) and Decimal(name.strip()) != numbers[name]]:
        other = next(name for name in ordered if not _is_number(name))
        warnings.append(
            f"the {what} are names, numbered in sorted order, because {shown(other)} is no number: "
            f"{moved[0]} is class {numbers[moved[0]]}"
        )
    stripped: dict[str, str] = {}
    for name in ordered:
        twin = stripped.setdefault(name.strip(), name)
        if twin != name:
            warnings.append(f"the {what} {shown(twin)} and {shown(name)} differ only in blanks, and are two classes")
            break
    return Numbering(numbers, ordered, len(ordered), warnings)


def _places(names: Collection[str], given: ClassList) -> dict[str, int]:
    """The place in the list of every name that is in it. In a list of numbers, "7", "07" and "7.0" are one name."""
    places = {name: place for place, name in enumerate(given.names)}
    found = {name: places[name] for name in names if name in places}
    if all(name.isdecimal() for name in given.names):
        values = {Decimal(name): place for name, place in places.items()}
        if len(values) == len(places):
            for name in names:
                if name not in found and _is_number(name) and (value := Decimal(name.strip())) in values:
                    found[name] = values[value]
    return found


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text.strip()) is not None


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (" ..." if len(names) > 3 else "")
