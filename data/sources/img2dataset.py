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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError
from data.packing.source import UNSEEN, Item, Reading, Skipped, Source, ahead, fingerprint, image_field
from data.shards import tar
from data.shards.fields import IMAGE_EXTENSIONS, image_bytes
from data.sources.label_table import Found, LabelTable
from data.sources.soft_labels import Kept
from data.sources.table import check_columns, read_table, words
from data.sources.tars.keys import front
from data.sources.tars.members import HIDDEN, check_tars, is_hidden
from data.sources.tars.repeats import CHUNK, Plain, Repeats, arrivals
from data.sources.walk import walk

NO_ROW = "no row in the label table"
SEVERAL_ROWS = "several rows of one key in img2dataset's Parquet file"
SHARED_KEY = "other tars have its key, by which the label table is joined"
KEY_AGAIN = "another image of the same tar has its key"
NOT_GOT = "img2dataset did not get the image"
NO_TAR = "its tar is not there"
NO_PART = "no file of img2dataset"
NO_SAMPLE = "in a tar, but part of no sample"
TWICE = "a second field of the same name in a sample"
AMBIGUOUS, SHARED = -2, -3  # instead of a row: the table has several; the key is that of other images, too


class Span(NamedTuple):
    """Samples first .. last-1 of a tar with `total` samples, and the keys in it that are kept as they are."""

    url: str
    first: int
    last: int
    total: int
    plain: Plain


class Columns(NamedTuple):
    """Names of the columns of the labels, or of the keys in each sample's `.json`. `key` is joined with a table."""

    key: str = "id"
    labels: str = "labels"
    probabilities: str = "label_probs"


COLUMNS = Columns()  # COYO-Labeled-300M's
ALL = Kept()


class Img2dataset(Source):
    """The images under `url` with their labels, and the labels' probabilities if there are any.

    Args:
        table: URL of the label table: a CSV, a Parquet file, or a folder of Parquet files. None: each sample's `.json`
            has the labels.
        num_classes: 0 means the largest label + 1.
        kept: which labels are kept. Images without any of them are left out.

    Raises:
        DataError: there are no tars, img2dataset did not finish one, one is a pipe or a link that leads nowhere, or the
            table cannot be read.
    """

    mixed = True
    multi_label = True

    def __init__(
        self,
        url: str,
        table: str | None = None,
        columns: Columns = COLUMNS,
        num_classes: int = 0,
        kept: Kept = ALL,
    ) -> None:
        self.name, self.num_classes, self.about = "img2dataset", num_classes, kept.notes()
        self._columns, self._kept = columns, kept
        folder = storage.absolute(url)
        listing = walk(folder)
        check_tars(url, listing)
        names = sorted(name for name in listing.files if _is_tar(name))
        if not names:
            raise DataError(f"{url}: no .tar files there")
        self._urls = [storage.join(folder, name) for name in names]
        counted = list(ahead(_counts, self._urls))
        counts = [successes for successes, _ in counted]
        sizes = [size or 0 for size in ahead(storage.size, self._urls)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._repeats = Repeats(self._urls)
        self.skipped = [
            *listing.skipped,
            *_others(sorted(listing.files), names),
            *(
                Skipped(f"{name[:-4]}.parquet", NOT_GOT, failed)
                for name, (_, failed) in zip(names, counted, strict=True)
                if failed
            ),
            *(one for name, count in zip(self._urls, counts, strict=True) if not count for one in _in_no_sample(name)),
        ]
        self._table = None
        if table is not None:
            self._table = LabelTable(
                table, columns.key, columns.labels, columns.probabilities, kept.min_probability is not None
            )
        self.mean_bytes = sum(sizes) / max(len(self), 1)
        described = self._table.fingerprint if self._table else ""
        version = ["keys 2"] if self._repeats.any() else []  # earlier versions gave images the labels of others
        tars = zip(names, counts, sizes, strict=True)
        chosen = [kept] if kept != ALL else []
        self.fingerprint = fingerprint([*version, *chosen, described, columns, num_classes, *tars])

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
                place = max(first, begin) - begin, min(last, end) - begin, end - begin
                spans.append(Span(self._urls[number], *place, self._repeats.plain(number)))
        if self._table is None:
            return partial(_read, spans, [partial(_own_labels, self._columns)] * len(spans), self._kept)
        rows = [_rows(span, self._columns.key, self._table) for span in spans]
        wanted = sorted({row for of_a_tar in rows for row in of_a_tar.values() if row >= 0})
        return partial(_read_joined, spans, rows, self._table.reading(wanted), self._kept)


def _stem(url: str) -> str:
    """The name of a tar without its extension."""
    return url.rpartition("/")[2].removesuffix(".tar")


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and "/" not in name and not is_hidden(name)


def _counts(url: str) -> tuple[int, int]:
    """Numbers of the images in a tar, and of the rows without one, as img2dataset counted them."""
    stats = f"{url.removesuffix('.tar')}_stats.json"
    try:
        with storage.reporting(stats):
            record = json.loads(storage.read(stats))
    except FileNotFoundError as error:
        raise DataError(
            f"{stats}: is missing, so img2dataset did not finish this tar; run it again, or move the tar away"
        ) from error
    try:
        successes = int(record["successes"])
        failures = max(int(record.get("count") or successes) - successes, 0)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
        successes = failures = -1
    if successes < 0:
        raise DataError(f"{stats}: does not hold img2dataset's numbers `count` and `successes`; download the tar again")
    return successes, failures


def _others(files: Sequence[str], tars: Sequence[str]) -> Iterator[Skipped]:
    """The files that belong to no tar."""
    stems = {name.removesuffix(".tar") for name in tars}
    for name in files:
        stem = name.removesuffix("_stats.json").removesuffix(".parquet").removesuffix(".tar")
        if is_hidden(name):
            yield Skipped(name, HIDDEN)
        elif stem not in stems or stem == name:
            yield Skipped(name, NO_TAR if name.endswith(("_stats.json", ".parquet")) else NO_PART)


def _in_no_sample(url: str) -> Sequence[Skipped]:
    """What lies in a tar without images."""
    others = _Others(url)
    try:
        with storage.reporting(url), storage.open_read(url, CHUNK) as file:
            for sample in tar.samples(others.watch(tar.read_members(file, CHUNK))):
                if _has_image(sample):
                    raise DataError(f"{url}: holds images, its _stats.json says 0; download it again")
                others.note(sample.key, NO_SAMPLE)
    except FileNotFoundError:
        pass
    return others.found


def _rows(span: Span, key: str, table: LabelTable) -> dict[str, int]:
    """The row of the label table by sample key, from the Parquet file beside a tar; `AMBIGUOUS` if there are several.

    If the table is joined by the samples' own keys, those that other tars have, too, are `SHARED`.

    Rows of images that did not arrive count only if no other row has their key.
    """
    beside = f"{span.url.removesuffix('.tar')}.parquet"
    listed = read_table(beside)
    check_columns(beside, listed.schema, "key", key)
    keys, arrived = arrivals(listed)
    rows = table.rows(listed[key].to_pylist()).tolist()
    found: dict[str, int] = {}
    there: dict[str, int] = {}
    for sample_key, here, row in zip(keys, arrived, rows, strict=True):
        if key == "key" and not span.plain.holds(sample_key):
            row = SHARED
        known = there if here else found
        known[sample_key] = row if known.get(sample_key, row) == row else AMBIGUOUS
    return found | there


def _own_labels(columns: Columns, key: str, fields: Mapping[str, bytes]) -> Found | None:
    try:
        record = json.loads(bytes(fields["json"])) if "json" in fields else {}
        if columns.labels not in record:
            raise BadSample(Cause.NO_LABEL)
    except (ValueError, TypeError) as error:
        raise BadSample(Cause.BAD_LABEL) from error
    return words(record[columns.labels]), words(record.get(columns.probabilities))


def _read_joined(
    spans: list[Span], rows: list[dict[str, int]], labels: Callable[[], dict[int, Found]], kept: Kept
) -> Iterator[Item | Skipped]:
    found = labels()

    def look_up(of_this_tar: dict[str, int], key: str, fields: Mapping[str, bytes]) -> Found | None:
        row = of_this_tar.get(key, -1)
        if row in (AMBIGUOUS, SHARED):
            raise BadSample(SEVERAL_ROWS if row == AMBIGUOUS else SHARED_KEY)
        return found.get(row)

    yield from _read(spans, [partial(look_up, of_a_tar) for of_a_tar in rows], kept, once=True)


def _read(
    spans: list[Span],
    finds: Sequence[Callable[[str, Mapping[str, bytes]], Found | None]],
    kept: Kept,
    once: bool = False,
) -> Iterator[Item | Skipped]:
    """The samples of all spans. `once`: a row of the label table cannot be that of two images."""
    for span, find in zip(spans, finds, strict=True):
        for key, again, sample in _samples(span):
            if isinstance(sample, Skipped):
                yield sample
                continue
            try:
                if again and once:
                    raise BadSample(KEY_AGAIN)
                found = find(sample.key, sample.fields)  # type: ignore[arg-type]
                if found is None:
                    yield Skipped(f"{_stem(span.url)}/{sample.key}", NO_ROW)
                    continue
                extension, image = image_field(bytes(image_bytes(sample.fields)))  # type: ignore[arg-type]
                yield Item(key, {extension: image, "json": kept.field(*found)})
            except BadSample as bad:
                yield Skipped(f"{_stem(span.url)}/{sample.key}", bad.cause)


def _samples(span: Span) -> Iterator[tuple[str, bool, tar.TarSample | Skipped]]:
    """(key, whether an image before it in the tar has the same one, sample) of a span; and what else lies there.

    Raises:
        DataError: the tar holds another number than img2dataset counted.
    """
    keys = _Keys(span)
    others = _Others(span.url)
    seen = 0
    try:
        with storage.reporting(span.url), storage.open_read(span.url, CHUNK) as file:
            for sample in tar.samples(others.watch(tar.read_members(file, CHUNK))):
                inside = span.first <= seen < span.last
                if not _has_image(sample):
                    others.note(sample.key, NO_SAMPLE)
                    continue
                key, again = keys.unique(sample.key)
                if inside:
                    yield key, again, sample
                    yield from (("", False, one) for one in others.found)
                others.found.clear()
                seen += 1
                if seen == span.last < span.total:
                    return
    except FileNotFoundError as error:
        raise DataError(f"{span.url}: {UNSEEN}") from error
    except DataError as error:
        raise DataError(f"{span.url}: {str(error).removeprefix(f'{span.url}: ')}; download it again") from error
    if seen != span.total:
        raise DataError(f"{span.url}: holds {seen:,} images, its _stats.json says {span.total:,}; download it again")
    yield from (("", False, one) for one in others.found)


def _has_image(sample: tar.TarSample) -> bool:
    return any(extension in sample.fields for extension in IMAGE_EXTENSIONS)


class _Keys:
    """Unique keys for the samples of a tar: those that other samples have, too, get the tar's name in front."""

    def __init__(self, span: Span) -> None:
        self._plain = span.plain
        self._front = front(_stem(span.url))
        self._there: set[str] = set()
        self._given: set[str] = set()

    def unique(self, key: str) -> tuple[str, bool]:
        """(the key to use, whether the tar has had this key before)."""
        again = key in self._there
        self._there.add(key)
        unique = key if self._plain.holds(key) and not again else f"{self._front}/{key}"
        number = 1
        while unique in self._given:
            number += 1
            unique = f"{self._front}/{key}~{number}"
        self._given.add(unique)
        return unique, again


class _Others:
    """Notes the members of a tar that are no field of a sample."""

    def __init__(self, url: str) -> None:
        self._tar = _stem(url)
        self.found: list[Skipped] = []

    def note(self, name: str, reason: str) -> None:
        self.found.append(Skipped(f"{self._tar}/{name}", reason))

    def watch(self, members: Iterable[tar.Member]) -> Iterator[tar.Member]:
        current, fields = "", set[str]()
        for member in members:
            split = tar.split_name(member.name) if member.is_file else None
            if split is None:
                self.note(member.name.rstrip("/"), NO_SAMPLE)
                continue
            key, extension = split
            if key != current:
                current, fields = key, set()
            if extension in fields:
                self.note(member.name, TWICE)
            fields.add(extension)
            yield member
