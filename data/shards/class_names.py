"""Names of classes: in an index, in `classes.txt` beside it, and in the lists that people write.

A name is any text. The index holds the names as JSON, which can write all of them: lone surrogates stand for the bytes
of a file name that is not UTF-8. In a text list each line is a name. A name that a line cannot show stands there as a
JSON string in quotes: one with control characters, line breaks, blanks around it, undecodable bytes, or a quote or an
opening bracket in front.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data import bounds, storage
from data.errors import DataError
from data.shards.index import INDEX_NAME, Index, open_index

CLASSES_NAME = "classes.txt"
ENCODING = "utf-8", "surrogateescape"  # as Python decodes file names


class ClassList(NamedTuple):
    """Names by class number, and the URL they were read from."""

    url: str
    names: tuple[str, ...]


def class_names(index: Index) -> tuple[str, ...]:
    """The names of an index by class number; for an older set, the lines of classes.txt beside it. Empty: no names.

    Raises:
        DataError: classes.txt cannot be read.
    """
    if index.class_names:
        return index.class_names
    url = storage.join(storage.parent(index.url), CLASSES_NAME)
    try:
        with storage.reporting(url):
            text = storage.read(url).decode(*ENCODING)
    except FileNotFoundError:
        return ()
    if not index.source:  # shards of another tool, or indexed again
        return tuple(map(_unquoted, _lines(text.removeprefix("\ufeff"))))
    names = text.removesuffix("\n").split("\n")
    return tuple(names) if len(names) == index.num_classes else ()  # else a name has a line break


def shown(name: str) -> str:
    """A name as one line of text that any terminal and file takes: itself, or else a JSON string in quotes."""
    plain = name.isprintable() and name == name.strip() and name and not name.startswith(('"', "[", "{"))
    return name if plain else json.dumps(name)


def text_list(names: Iterable[str]) -> bytes:
    """The content of classes.txt: a line for each name. `read_class_list` reads it back."""
    return "".join(f"{shown(name)}\n" for name in names).encode()


def read_class_list(url: str) -> ClassList:
    """Read a list of class names: an index or its folder, a JSON list, or text with one name a line.

    The list of an index without names is its class numbers, 0, 1, 2 ...

    Raises:
        DataError: there is no such list, or it is damaged, has a line without a name, or repeats one.
    """
    place = storage.absolute(url)
    with storage.reporting(url):
        if storage.exists(storage.join(place, INDEX_NAME)):
            return _distinct(url, _of_index(url))
        try:
            text = storage.read(place).decode(*ENCODING).removeprefix("\ufeff")
        except FileNotFoundError as error:
            advice = "give an index.json or its folder, a JSON list, or text with one class a line"
            raise DataError(f"{url}: does not exist; {advice}") from error
    is_json = place.endswith(".json")
    if is_json and text.lstrip().startswith("{"):
        return _distinct(url, _of_index(url))
    if is_json or text.lstrip().startswith("["):
        return _distinct(url, _of_json(url, text, is_json))
    return _distinct(url, _of_lines(url, text))


def are_own_numbers(names: Sequence[str]) -> bool:
    """Whether each name is the number of its class, such as "7" or "007": then the names say nothing new."""
    return all(name.isdecimal() and int(name) == number for number, name in enumerate(names))


def warn_of_one_based(index: Index) -> str | None:
    """A line about labels 1 to N without 0, which may count from 1; None for other labels, and for named classes."""
    counts = index.label_counts
    if not counts or min(counts) != 1 or not are_own_numbers(index.class_names):
        return None
    return (
        f"the labels are 1 to {max(counts):,}, and 0 never occurs: class numbers count from 0; if these count from 1, "
        "subtract 1 from each of them, or class 0 stays empty"
    )


def warn_of_untrained(index: Index, train: Index) -> str | None:
    """A line about classes with images in `index`, but none in `train`; None if there are none."""
    missing = sorted(index.label_counts.keys() - train.label_counts.keys())
    if not missing:
        return None
    first = f"class {missing[0]}"
    if missing[0] < len(index.class_names):
        first += f", {shown(index.class_names[missing[0]])}"
    who = f"{first} and {len(missing) - 1:,} more have" if len(missing) > 1 else f"{first} has"
    return f"{who} images here, and none in {storage.parent(train.url)}"


def _distinct(url: str, names: Sequence[str]) -> ClassList:
    if not names:
        raise DataError(f"{url}: holds no class name")
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in numbers:
            raise DataError(
                f"{url}: classes {numbers[name]} and {number} have one name, {shown(name)}; make them differ"
            )
        numbers[name] = number
    return ClassList(url, tuple(names))


def _of_index(url: str) -> Sequence[str]:
    index = open_index(url)
    if names := class_names(index):
        return names
    if index.num_classes > bounds.CLASSES:
        raise DataError(f"{url}: {index.num_classes:,} classes are more than {bounds.CLASSES:,}")
    return [str(number) for number in range(index.num_classes)]


def _of_json(url: str, text: str, is_json: bool) -> Sequence[str]:
    try:
        names = json.loads(text)
        if not isinstance(names, list):
            raise ValueError("it is no list")
    except (ValueError, RecursionError) as error:
        if is_json:
            raise DataError(f"{url}: not a JSON list of class names ({error})") from error
        return _of_lines(url, text)  # text whose first class begins with a bracket
    names = [str(name) if type(name) is int else name for name in names]
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f'{url}: {json.dumps(name)} is no class name; a JSON list of names is ["cat", "dog"]')
    return names


def _of_lines(url: str, text: str) -> list[str]:
    names = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            raise DataError(f"{url}: line {number} has no class name; each line is the name of one class")
        names.append(_unquoted(line))
    return names


def _lines(text: str) -> list[str]:
    """The lines without the empty ones at the end."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _unquoted(line: str) -> str:
    if line.startswith('"') and line.endswith('"'):
        try:
            return str(json.loads(line))
        except ValueError:
            pass
    return line
