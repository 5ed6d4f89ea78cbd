"""Tables of labels, as CSV or Parquet."""

import ast
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data import storage
from data.errors import DataError

FOOTER_BYTES = 1 << 16  # of a request, when a Parquet file is read in parts


def read_table(url: str) -> pa.Table:
    """A CSV (with a header line; every column as text) or a Parquet file, whole.

    Raises:
        DataError: it cannot be read.
    """
    return _read(url, pa.string())


class Rows(NamedTuple):
    """The rows of a table of labelled images.

    Attributes:
        paths: of the images; "" if a row has none.
        labels: of each row, as text: none if the value is missing.
        multi_label: whether there is a column `labels`; else the rows have one `label`.
    """

    paths: Sequence[str]
    labels: Sequence[Sequence[str]]
    multi_label: bool


def read_rows(url: str) -> Rows:
    """Read a table with a column `path` and a column `label`, or `labels` for any number of them.

    A `label` is the whole text of a cell. `labels` are a list in Parquet; in a CSV, a JSON list or a Python list, or
    words with spaces or commas between them.

    Raises:
        DataError: the table cannot be read, lacks a column, or has several labels in the column `label`.
    """
    table = _read(url, pa.binary())
    multi_label = "labels" in table.column_names
    wanted = "labels" if multi_label else "label"
    check_columns(url, table.schema, "path", wanted)
    paths, cells = ([_text(value) for value in table[column].to_pylist()] for column in ("path", wanted))
    lists = [_as_list(cell) for cell in cells]
    labels = [
        found if found is not None else words(cell) if multi_label else [cell]
        for found, cell in zip(lists, cells, strict=True)
    ]
    rows = [[str(label) for label in row if label is not None] for row in labels]
    if not multi_label:
        _check_single(url, rows)
    return Rows(["" if path is None else str(path) for path in paths], rows, multi_label)


def _check_single(url: str, rows: Sequence[Sequence[str]]) -> None:
    """Raise DataError if rows have several labels: lists of them, or nothing but numbers in every row."""
    several = next((place for place, row in enumerate(rows) if len(row) > 1), None)
    if several is None:
        numbers = [[str(word).isdecimal() for label in row for word in words(label)] for row in rows]
        if all(all(row) for row in numbers):
            several = next((place for place, row in enumerate(numbers) if len(row) > 1), None)
    if several is not None:
        raise DataError(
            f"{url}: the column `label` holds one label a row, but row {several + 1:,} has several; if an image may "
            "have several, call the column `labels`"
        )


def _text(value: object) -> object:
    """The value of a cell: None if it is missing, text in place of bytes."""
    if isinstance(value, list):
        return [_text(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_list(cell: object) -> list[object] | None:
    """The values of a cell that is a list, or the text of one; None for other cells."""
    if isinstance(cell, list):
        return cell
    text = cell.strip() if isinstance(cell, str) else ""
    if text.startswith("["):
        for parse in (json.loads, ast.literal_eval):  # as JSON or pandas writes lists
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                if isinstance(found := parse(text), list):
                    return found
    return None


def _read(url: str, csv_type: pa.DataType) -> pa.Table:
    """The table, whole. Every column of a CSV file has this type."""
    try:
        with storage.reporting(url):
            content = pa.BufferReader(storage.read(url))
            if url.endswith(".parquet"):
                return pa.parquet.read_table(content)
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            names = pa.csv.read_csv(content, parse_options=parsing).column_names
            content.seek(0)
            types = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, csv_type), strings_can_be_null=False)
            return pa.csv.read_csv(content, parse_options=parsing, convert_options=types)
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist") from error


@contextmanager
def open_parquet(url: str) -> Iterator[pa.parquet.ParquetFile]:
    """Open a Parquet file, to read parts of it.

    Raises:
        DataError: it is no Parquet file, or cannot be read.
        FileNotFoundError: there is no such file.
    """
    with storage.reporting(url), storage.open_read(url, FOOTER_BYTES) as file:
        yield pa.parquet.ParquetFile(file)


def words(value: object) -> Sequence[object]:
    """The values in a cell: those of a list, or of text with spaces or commas between them; brackets are ignored."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    return [word for word in re.split(r"[\s,]+", str(value).strip().strip("[]")) if word]


def check_columns(url: str, table: pa.Schema, *columns: str) -> None:
    """Check that `table`, which was read from `url`, has these columns.

    Raises:
        DataError: a column is missing.
    """
    for column in columns:
        if (count := table.names.count(column)) != 1:
            found = f"has {count} columns {column!r}" if count else f"has no column {column!r}"
            raise DataError(f"{url}: {found}; there are: {', '.join(table.names)}")
