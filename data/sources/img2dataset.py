"""Images that img2dataset downloaded, with labels: COYO-Labeled-300M and similar sets.

img2dataset writes NNNNN.tar (`.jpg`, `.json`, perhaps `.txt`), NNNNN.parquet (a row for every image it tried) and
NNNNN_stats.json. The labels are in each `.json`, if img2dataset kept their columns (`--save_additional_columns`), or in
a table of their own, which is joined on a common column.

Tars are read from start to end, and the images keep their order: a list of URLs is already mixed, and 300 million
random reads would take days. Only the table's key column is in memory: 16 bytes a row, 4.8 GB for 300 million. The
process that packs a shard reads its labels by row groups: fast if the table has about the order in which img2dataset
read it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError
from data.packing.source import UNSEEN, Item, Reading, Skipped, Source, ahead, fingerprint, image_field
from data.shards import tar
from data.shards.fields import IMAGE_EXTENSIONS, image_bytes
from data.sources.label_table import Found, LabelTable
from data.sources.table import check_columns, read_table, words

CHUNK = 8 << 20
NO_ROW = "no row in the label table"


class Span(NamedTuple):
    """Samples first .. last-1 of a tar with `total` samples."""

    url: str
    first: int
    last: int
    total: int


class Columns(NamedTuple):
    """Names of the columns of the labels, or of the keys in each sample's `.json`. `key` is joined with a table."""

    key: str = "id"
    labels: str = "labels"
    probabilities: str = "label_probs"


COLUMNS = Columns()  # COYO-Labeled-300M's


class Img2dataset(Source):
    """The images under `url` with their labels, and the labels' probabilities if there are any.

    Args:
        table: URL of the label table: a CSV, a Parquet file, or a folder of Parquet files. None: each sample's `.json`
            has the labels.
        num_classes: 0 means the largest label + 1.

    Raises:
        DataError: there are no tars, img2dataset did not finish one, or the table cannot be read.
    """

    mixed = True
    multi_label = True

    def __init__(self, url: str, table: str | None = None, columns: Columns = COLUMNS, num_classes: int = 0) -> None:
        self.name, self.num_classes = "img2dataset", num_classes
        self._columns = columns
        folder = storage.absolute(url)
        with storage.reporting(url):
            names = storage.matching(folder, "*.tar")
        if not names:
            raise DataError(f"{url}: no .tar files there")
        self._urls = [storage.join(folder, name) for name in names]
        counts = list(ahead(_count, self._urls))
        sizes = [size or 0 for size in ahead(storage.size, self._urls)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._table = None if table is None else LabelTable(table, columns.key, columns.labels, columns.probabilities)
        self.mean_bytes = sum(sizes) / max(len(self), 1)
        described = self._table.fingerprint if self._table else ""
        self.fingerprint = fingerprint([described, columns, num_classes, *zip(names, counts, sizes, strict=True)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def reading(self, positions: np.ndarray) -> Reading:
        first, last = int(positions[0]), int(positions[-1]) + 1  # one run: a mixed source keeps its order
        spans = []
        for number in range(
            int(np.searchsorted(self._starts, first, side="right")) - 1, int(np.searchsorted(self._starts, last))
        ):
            begin, end = int(self._starts[number]), int(self._starts[number + 1])
            if end > begin:
                spans.append(Span(self._urls[number], max(first, begin) - begin, min(last, end) - begin, end - begin))
        if self._table is None:
            return partial(_read, spans, partial(_own_labels, self._columns))
        found: dict[str, int] = {}
        for span in spans:
            keys, values = _sidecar(span.url, self._columns.key)
            found.update(zip(keys, self._table.rows(values).tolist(), strict=True))
        return partial(_read_joined, spans, found, self._table.reading(sorted(set(found.values()) - {-1})))


def _count(url: str) -> int:
    """Number of samples in a tar, as img2dataset counted them."""
    stats = f"{url.removesuffix('.tar')}_stats.json"
    try:
        with storage.reporting(stats):
            return int(json.loads(storage.read(stats))["successes"])
    except FileNotFoundError as error:
        raise DataError(
            f"{stats}: is missing, so img2dataset did not finish this tar; run it again, or move the tar away"
        ) from error


def _sidecar(url: str, key: str) -> tuple[list[str], Sequence[Any]]:
    """(sample keys, values of the column `key`) of the images that arrived, from the Parquet file beside a tar."""
    beside = f"{url.removesuffix('.tar')}.parquet"
    table = read_table(beside)
    check_columns(beside, table.schema, "key", key)
    return table["key"].to_pylist(), table[key].to_pylist()


def _own_labels(columns: Columns, key: str, fields: Mapping[str, bytes]) -> Found | None:
    try:
        record = json.loads(bytes(fields["json"])) if "json" in fields else {}
        if columns.labels not in record:
            raise BadSample(Cause.NO_LABEL)
    except (ValueError, TypeError) as error:
        raise BadSample(Cause.BAD_LABEL) from error
    return words(record[columns.labels]), words(record.get(columns.probabilities))


def _read_joined(
    spans: list[Span], rows: dict[str, int], labels: Callable[[], dict[int, Found]]
) -> Iterator[Item | Skipped]:
    found = labels()

    def look_up(key: str, fields: Mapping[str, bytes]) -> Found | None:
        return found.get(rows.get(key, -1))

    yield from _read(spans, look_up)


def _read(spans: list[Span], find: Callable[[str, Mapping[str, bytes]], Found | None]) -> Iterator[Item | Skipped]:
    for span in spans:
        for sample in _samples(span):
            try:
                found = find(sample.key, sample.fields)  # type: ignore[arg-type]
                if found is None:
                    yield Skipped(sample.key, NO_ROW)
                    continue
                extension, image = image_field(bytes(image_bytes(sample.fields)))  # type: ignore[arg-type]
                yield Item(sample.key, {extension: image, "json": _label_json(*found)})
            except BadSample as bad:
                yield Skipped(sample.key, bad.cause)


def _samples(span: Span) -> Iterator[tar.TarSample]:
    """The samples of a span.

    Raises:
        DataError: the tar holds another number than img2dataset counted.
    """
    seen = 0
    try:
        with storage.reporting(span.url), storage.open_read(span.url, CHUNK) as file:
            for sample in tar.samples(tar.read_members(file, CHUNK)):
                if not any(extension in sample.fields for extension in IMAGE_EXTENSIONS):
                    continue  # not a sample of img2dataset
                if span.first <= seen < span.last:
                    yield sample
                seen += 1
                if seen == span.last < span.total:
                    return
    except FileNotFoundError as error:
        raise DataError(f"{span.url}: {UNSEEN}") from error
    except DataError as error:
        raise DataError(f"{span.url}: {str(error).removeprefix(f'{span.url}: ')}; download it again") from error
    if seen != span.total:
        raise DataError(f"{span.url}: holds {seen:,} images, its _stats.json says {span.total:,}; download it again")


def _label_json(labels: Sequence[object], probabilities: Sequence[object]) -> bytes:
    try:
        record: dict[str, list[Any]] = {"labels": [int(label) for label in labels]}  # type: ignore[call-overload]
        if len(probabilities):
            record["probabilities"] = [float(value) for value in probabilities]  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise BadSample(Cause.BAD_LABEL) from error
    return json.dumps(record).encode()
