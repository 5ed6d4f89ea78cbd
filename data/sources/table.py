"""Tables of labels, as CSV or Parquet."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data import storage
from data.errors import DataError


def read_table(url: str) -> pa.Table:
    """A CSV (with a header line; every column as text) or a Parquet file, whole.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with storage.reporting(url):
            content = pa.BufferReader(storage.read(url))
            if url.endswith(".parquet"):
                return pa.parquet.read_table(content)
            names = pa.csv.read_csv(content).column_names
            content.seek(0)
            text = pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
            return pa.csv.read_csv(content, convert_options=text)
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist") from error


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
        if column not in table.names:
            raise DataError(f"{url}: has no column {column!r}; there are: {', '.join(table.names)}")
