"""A label table of hundreds of millions of rows: rows are found by key, and only the keys are in memory."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data import storage
from data.errors import DataError
from data.packing.source import fingerprint
from data.sources.table import check_columns, open_parquet, read_table, words

Found = tuple[Sequence[object], Sequence[object]]
"""Labels and their probabilities, which are empty if the table has no such column."""


class LabelTable:
    """Rows by key: integers, or 64 bits of the hash of a text. Of rows with the same key the first one counts.

    Args:
        url: a CSV, a Parquet file, or a folder of Parquet files.
        probabilities: a column that may be missing, unless it `must_have_probabilities`.

    Raises:
        DataError: it cannot be read, or lacks the other columns.
    """

    def __init__(
        self, url: str, key: str, labels: str, probabilities: str, must_have_probabilities: bool = False
    ) -> None:
        url = storage.absolute(url)
        needed = (key, labels, probabilities) if must_have_probabilities else (key, labels)
        self._wanted = labels, probabilities
        self._memory: pa.Table | None = None
        self._groups: list[tuple[str, int]] = []  # (file, row group)
        starts, keys = [0], []
        if url.endswith(".csv"):
            self._memory = read_table(url)
            check_columns(url, self._memory.schema, *needed)
            keys.append(_numbers(self._memory[key]))
        else:
            for file_url in _parquet_files(url):
                with _opened(file_url) as file:
                    check_columns(file_url, file.schema_arrow, *needed)
                    for group in range(file.num_row_groups):
                        keys.append(_numbers(file.read_row_group(group, columns=[key])[key]))
                        self._groups.append((file_url, group))
                        starts.append(starts[-1] + len(keys[-1]))
        joined = np.concatenate(keys)
        self._starts = np.array(starts)
        self._order = np.argsort(joined, kind="stable")
        self._keys = joined[self._order]
        self.fingerprint = fingerprint([key, self._wanted, len(joined), hashlib.sha256(joined.tobytes()).hexdigest()])

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The row of each key, -1 if there is none: int64 (n,)."""
        wanted = _numbers(pa.array(keys))
        if not len(self._keys):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, self._order[places], -1)

    def reading(self, rows: Sequence[int]) -> Callable[[], dict[int, Found]]:
        """A function that reads the labels of these rows (ascending), by row. Picklable and small."""
        if self._memory is not None:
            return partial(dict, zip(rows, _found(self._memory.take(list(rows)), self._wanted), strict=True))
        chosen = np.array(rows, np.int64)
        groups = np.searchsorted(self._starts, chosen, side="right") - 1
        parts = [
            (*self._groups[group], int(self._starts[group]), chosen[groups == group]) for group in np.unique(groups)
        ]
        return partial(_read_rows, parts, self._wanted)


def _read_rows(parts: list[tuple[str, int, int, np.ndarray]], wanted: tuple[str, str]) -> dict[int, Found]:
    found: dict[int, Found] = {}
    for url, group, start, rows in parts:
        with _opened(url) as file:
            columns = [name for name in wanted if name in file.schema_arrow.names]
            table = file.read_row_group(group, columns=columns).take(rows - start)
        found.update(zip(rows.tolist(), _found(table, wanted), strict=True))
    return found


def _found(table: pa.Table, wanted: tuple[str, str]) -> list[Found]:
    labels, probabilities = wanted
    given = table[probabilities].to_pylist() if probabilities in table.column_names else [None] * len(table)
    return [(words(one), words(other)) for one, other in zip(table[labels].to_pylist(), given, strict=True)]


def _parquet_files(url: str) -> list[str]:
    if url.endswith(".parquet") and not storage.is_folder(url):  # Spark writes a folder of this name
        return [url]
    names = storage.matching(url, "*.parquet")
    if not names:
        raise DataError(f"{url}: neither a .csv or .parquet file nor a folder of .parquet files")
    return [storage.join(url, name) for name in names]


@contextmanager
def _opened(url: str) -> Iterator[pa.parquet.ParquetFile]:
    """Open a Parquet file.

    Raises:
        DataError: there is no such file, or it is no Parquet file.
    """
    try:
        with open_parquet(url) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist") from error


def _numbers(column: Any) -> np.ndarray:
    """Keys as int64 (n,). Text of an integer is that integer."""
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), np.int64)
    return np.array([_number(str(value)) for value in column.to_pylist()], np.int64)


def _number(text: str) -> int:
    if text.lstrip("-").isdecimal() and len(text) < 19:
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
