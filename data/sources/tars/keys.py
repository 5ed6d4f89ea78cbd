"""One key for each image: the names of images in tars often repeat from tar to tar.

A name that is there once stays as it is, so that a set packs to the same bytes as ever. Names that repeat get their
class, or their tar, in front: `n01440764/000`. If that is still no new name, `~2`, `~3` ... follows.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute

from data.shards import tar
from data.sources.tars.members import is_hidden

LONGEST_EXTENSION = 5  # letters
SIMPLE = re.compile(r"[^\W_][\w-]*\.(?!db$|ini$)\w+", re.IGNORECASE)  # no folder, one dot, no system's file
CHUNK = 1 << 16  # names that are Python texts at a time
UTF8 = "utf-8", "surrogateescape"  # names of tars may be no UTF-8; tarfile reads them like this


def is_key(key: str) -> bool:
    """Whether WebDataset takes KEY.jpg as a sample of this key."""
    return tar.split_name(f"{key}.jpg") == (key, "jpg")


def stem(name: str) -> str:
    """The key of a member, if no other has it: its name without the extension.

    If WebDataset would end that key too early, dots become `_`.
    """
    key = _plain_stem(name)
    if is_key(key):
        return key
    folder, slash, base = name.rpartition("/")
    kept, _, extension = base.rpartition(".")
    if not kept or len(extension) > LONGEST_EXTENSION or not extension.isalnum():  # there is no extension
        kept = base
    return f"{folder}{slash}{kept.replace('.', '_')}"


def front(name: str) -> str:
    """The name of a class or tar as the first part of a key."""
    return name if is_key(f"{name}/0") else f"tar{name}"


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    """The texts in a column of bytes, thousands at a time."""
    for begin in range(0, len(column), CHUNK):
        for value in column.slice(begin, CHUNK).to_pylist():
            yield value.decode(*UTF8)


def binary(names: Iterable[str]) -> pa.Array:
    """A column of bytes with these texts."""
    return pa.array([name.encode(*UTF8) for name in names], pa.large_binary())


class Keys:
    """Keys of all images of a listing, in little memory: most keys follow from the name alone.

    Args:
        names: of the images; a column of bytes.
        fronts: class or tar of each image, a number.
        front_names: of the classes or tars.

    Attributes:
        differ: whether any key is another than in earlier versions, which took each name as it is.
    """

    def __init__(self, names: pa.ChunkedArray, fronts: np.ndarray, front_names: Sequence[str]) -> None:
        self._fronts = list(map(front, front_names))
        self.differ = False
        self._in_front = np.zeros(len(names), bool)
        self._others: dict[int, str] = {}  # position -> key, of those that no rule gives
        parts = [self._stems(names, begin) for begin in range(0, len(names), CHUNK)]
        stems = pa.chunked_array(parts, pa.large_binary())
        counts = pa.compute.value_counts(stems.drop_null())
        repeated = counts.field("values").filter(pa.compute.greater(counts.field("counts"), 1))
        if len(repeated):
            self.differ = True
            self._in_front |= pa.compute.is_in(stems, value_set=repeated).to_numpy()
        if self._in_front.any():
            self._settle(stems, fronts)

    def _stems(self, names: pa.ChunkedArray, begin: int) -> pa.Array:
        """The stems of some names; none of a name that is left out. Notes which are keys only behind a class."""
        found: list[bytes | None] = []
        for place, name in enumerate(texts(names.slice(begin, CHUNK)), begin):
            if SIMPLE.fullmatch(name):  # nearly all names; the rest of the loop takes ten times as long
                found.append(name.rpartition(".")[0].encode(*UTF8))
                continue
            key, was_key = stem(name), is_key(_plain_stem(name))
            usable = is_key(f"class/{key}") and not is_hidden(name)
            self.differ |= usable != was_key
            self._in_front[place] = usable and not is_key(key)
            found.append(key.encode(*UTF8) if usable else None)
        return pa.array(found, pa.large_binary())

    def take(self, positions: np.ndarray, names: Sequence[str], fronts: Sequence[int]) -> list[str]:
        """Keys of the images at `positions`, which have these names and fronts."""
        return [
            self._others.get(position) or self._plain(stem(name), front, in_front)
            for position, name, front, in_front in zip(
                positions.tolist(), names, fronts, self._in_front[positions].tolist(), strict=True
            )
        ]

    def _plain(self, key: str, front: int, in_front: bool) -> str:
        return f"{self._fronts[front]}/{key}" if in_front else key

    def _settle(self, stems: pa.ChunkedArray, fronts: np.ndarray) -> None:
        """Give a number to keys that still repeat with their class in front."""
        places = np.flatnonzero(self._in_front)
        chosen = texts(stems.filter(pa.array(self._in_front)))
        keys = [self._plain(key, front, True) for key, front in zip(chosen, fronts[places].tolist(), strict=True)]
        column = binary(keys)
        if (
            len(pa.compute.unique(column)) == len(keys)
            and not pa.compute.any(pa.compute.is_in(stems, value_set=column)).as_py()
        ):
            return
        taken = {*texts(stems.filter(pa.array(~self._in_front)).drop_null())}
        for place, key, unique in zip(places.tolist(), keys, numbered(keys, taken), strict=True):
            if unique != key:
                self._others[place] = unique


def numbered(keys: Sequence[str], taken: set[str]) -> Iterator[str]:
    """The keys; those that are `taken` or came before get `~2`, `~3` ... Every new key differs from all the others."""
    given, wanted = set(taken), {*keys, *taken}
    for key in keys:
        unique = key
        if key in given:
            unique = next(name for name in _numbers(key) if name not in wanted and name not in given)
        given.add(unique)
        yield unique


def _plain_stem(name: str) -> str:
    return name.rpartition(".")[0]


def _numbers(key: str) -> Iterator[str]:
    return (f"{key}~{number}" for number in count(2))
