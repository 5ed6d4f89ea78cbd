"""Which keys of img2dataset's tars come in other tars of the folder, too.

300 million keys are not held for that. The Parquet file beside each tar knows its lowest and its highest key. Only if
the ranges of tars overlap are their keys read and compared.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from data import storage
from data.errors import DataError
from data.packing.source import ahead
from data.shards import tar
from data.sources.table import open_parquet

CHUNK = 8 << 20  # bytes of a request while a tar is read
SUCCESS = "success"  # img2dataset's status of a row whose image is in the tar


class Plain(NamedTuple):
    """The keys of a tar that no other tar has: those in `keys`, or without it those from `low` to `high`."""

    low: str
    high: str
    keys: frozenset[str] | None = None

    def holds(self, key: str) -> bool:
        if "/" in key:
            return False  # such a key may look like one with a tar's name in front
        return self.low <= key <= self.high if self.keys is None else key in self.keys


class Repeats:
    """Finds out which keys of these tars repeat."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._ranges = list(ahead(key_range, urls))
        self._repeated: dict[int, frozenset[str]] = {}  # by tar, of those with overlapping ranges
        for group in overlapping(self._ranges):
            counts = Counter(key for keys in ahead(tar_keys, [urls[number] for number in group]) for key in set(keys))
            repeated = frozenset(key for key, count in counts.items() if count > 1)
            self._repeated |= dict.fromkeys(group, repeated)

    def any(self) -> bool:
        return any(self._repeated.values())

    def plain(self, number: int) -> Plain:
        """The keys of tar `number` that are kept as they are."""
        low, high = self._ranges[number] or ("", "")
        if number not in self._repeated:
            return Plain(low, high)
        return Plain(low, high, frozenset(tar_keys(self._urls[number])) - self._repeated[number])


def overlapping(ranges: Sequence[tuple[str, str] | None]) -> Iterator[list[int]]:
    """Groups of ranges, by number, that have places in common, directly or through others."""
    group: list[int] = []
    end = ""
    for low, high, number in sorted((*one, number) for number, one in enumerate(ranges) if one is not None):
        if group and low <= end:
            group.append(number)
            end = max(end, high)
            continue
        if len(group) > 1:
            yield group
        group, end = [number], high
    if len(group) > 1:
        yield group


def key_range(url: str) -> tuple[str, str] | None:
    """The lowest and the highest key of a tar, or None if it has none."""
    try:
        with _parquet(url) as file:
            column = file.schema_arrow.names.index("key")
            groups = [file.metadata.row_group(number).column(column) for number in range(file.num_row_groups)]
            found = [group.statistics for group in groups if group.num_values]
            if all(one is not None and one.has_min_max and isinstance(one.min, str) for one in found):
                return (min(one.min for one in found), max(one.max for one in found)) if found else None
    except (FileNotFoundError, ValueError):  # no Parquet file, or no such column: the tar itself has the keys
        pass
    keys = tar_keys(url)
    return (min(keys), max(keys)) if keys else None


def tar_keys(url: str) -> list[str]:
    """The keys of the images in a tar: of those rows of the Parquet file beside it, or without one of the tar."""
    try:
        with _parquet(url) as file:
            if "key" in file.schema_arrow.names and _is_text(file.schema_arrow.field("key").type):
                table = file.read([name for name in ("key", "status") if name in file.schema_arrow.names])
                return [key for key, arrived in zip(*arrivals(table), strict=True) if arrived]
    except (FileNotFoundError, DataError):
        pass
    with storage.reporting(url), storage.open_read(url, CHUNK) as opened:
        return [sample.key for sample in tar.samples(tar.read_members(opened, CHUNK))]


def arrivals(table: pa.Table) -> tuple[list[str], list[bool]]:
    """(key, whether the image arrived) of each row of img2dataset's table."""
    keys = [str(key) for key in table["key"].to_pylist()]
    status: list[Any] = table["status"].to_pylist() if "status" in table.column_names else [SUCCESS] * len(keys)
    return keys, [one == SUCCESS for one in status]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parquet(url: str) -> AbstractContextManager[pa.parquet.ParquetFile]:
    """The Parquet file beside a tar."""
    return open_parquet(f"{url.removesuffix('.tar')}.parquet")
