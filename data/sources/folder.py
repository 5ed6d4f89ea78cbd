"""A folder of image files, with one folder for each class or with a table of labels."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from data import storage
from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, ahead, fingerprint, image_field, label_field, read_file
from data.sources.table import check_columns, read_table, words
from data.sources.walk import Listing, walk

EXTENSIONS = {
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "ppm",
    "pgm",
}  # of the files that are taken as images
NO_IMAGE_NAME = "no image extension"
NO_CLASS_FOLDER = "in no class folder"
NO_ROW = "no row in the label table"
NO_FILE = "in the label table, no such file"


class Folder(Source):
    """Images under a local folder or fsspec URL, at any depth.

    Without a table the classes are the folders directly in it, empty ones too, in sorted order. With a table (CSV or
    Parquet), each row has a `path` relative to the folder and a `label`, or in a multi-label set `labels` with spaces
    between them. Labels are class numbers, or names, which are numbered in sorted order.

    Keys are the images' paths without their extension. Dots in the file name become `_`, since WebDataset ends a key at
    the first dot. Keys that would be equal get `~2`, `~3` ...

    Raises:
        DataError: there is no such folder, or the table cannot be read.
    """

    def __init__(self, url: str, table: str | None = None) -> None:
        self.name = "folder"
        self._url = storage.absolute(url)
        listing = walk(self._url)
        sizes, unread = by_extension(listing.files)
        self.found = listing.found
        self.skipped: list[Skipped] = [*listing.skipped, *unread]
        labels = self._by_folder(sizes, listing.folders) if table is None else self._by_table(sizes, listing, table)
        self._paths = sorted(labels)
        self._labels = [labels[path] for path in self._paths]
        self._keys = unique_keys(self._paths)
        lines = (f"{path}\t{sizes[path]}\t{labels[path]}" for path in self._paths)
        self.fingerprint = fingerprint([*self.class_names, *lines])
        self.mean_bytes = sum(sizes[path] for path in self._paths) / max(len(self._paths), 1)

    def __len__(self) -> int:
        return len(self._paths)

    def reading(self, positions: np.ndarray) -> Reading:
        chosen = positions.tolist()
        return partial(
            _read,
            self._url,
            [self._paths[place] for place in chosen],
            [self._keys[place] for place in chosen],
            [self._labels[place] for place in chosen],
            self.multi_label,
        )

    def _by_folder(self, sizes: dict[str, int], folders: list[str]) -> dict[str, tuple[int, ...]]:
        self.class_names = sorted(folder for folder in folders if "/" not in folder)
        self.num_classes = len(self.class_names)
        self.skipped += [Skipped(path, NO_CLASS_FOLDER) for path in sorted(sizes) if "/" not in path]
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return {path: (numbers[path.split("/")[0]],) for path in sizes if "/" in path}

    def _by_table(self, sizes: dict[str, int], listing: Listing, table: str) -> dict[str, tuple[int, ...]]:
        columns = read_table(table)
        self.multi_label = "labels" in columns.column_names
        wanted = "labels" if self.multi_label else "label"
        check_columns(table, columns.schema, "path", wanted)
        rows = [[str(word) for word in words(value)] for value in columns[wanted].to_pylist()]
        names = sorted({word for row in rows for word in row})
        if all(name.isdecimal() for name in names):
            numbers = {name: int(name) for name in names}
        else:
            numbers = {name: number for number, name in enumerate(names)}
            self.class_names, self.num_classes = names, len(names)
        if not self.multi_label and any(len(row) != 1 for row in rows):
            raise DataError(
                f"{table}: the column `label` holds one label a row; if there are several, call it `labels`"
            )
        paths = [posixpath.normpath(str(path)) for path in columns["path"].to_pylist()]
        if len(set(paths)) < len(paths):
            raise DataError(f"{table}: {Counter(paths).most_common(1)[0][0]} is listed more than once")
        found = {path: tuple(numbers[word] for word in row) for path, row in zip(paths, rows, strict=True)}
        self.skipped += [Skipped(path, NO_ROW) for path in sorted(sizes.keys() - found.keys())]
        absent = sorted(found.keys() - listing.files.keys())
        self.skipped += [Skipped(path, NO_FILE) for path in absent]
        self.found = listing.found + len(absent)
        return {path: found[path] for path in found.keys() & sizes.keys()}


def unique_keys(paths: Sequence[str]) -> list[str]:
    """A WebDataset key for each path. Different paths have different keys."""
    stems = [path.rpartition(".")[0] for path in paths]
    keys = [posixpath.join(posixpath.dirname(stem), posixpath.basename(stem).replace(".", "_")) for stem in stems]
    taken, unique = set(keys), []
    seen: set[str] = set()
    for key in keys:
        name, count = key, 1
        while name in seen or (count > 1 and name in taken):
            count += 1
            name = f"{key}~{count}"
        seen.add(name)
        unique.append(name)
    return unique


def by_extension(files: dict[str, int]) -> tuple[dict[str, int], list[Skipped]]:
    """The files whose extension is an image's, and the others."""
    sizes = {path: size for path, size in files.items() if path.rpartition(".")[2].lower() in EXTENSIONS}
    return sizes, [Skipped(path, NO_IMAGE_NAME) for path in sorted(files.keys() - sizes.keys())]


def _read(
    url: str, paths: list[str], keys: list[str], labels: list[tuple[int, ...]], multi_label: bool
) -> Iterator[Item | Skipped]:
    contents = ahead(read_file, [f"{url.rstrip('/')}/{path}" for path in paths])
    for path, key, numbers, content in zip(paths, keys, labels, contents, strict=True):
        try:
            extension, image = image_field(content)
        except BadSample as bad:
            yield Skipped(path, bad.cause)
            continue
        yield Item(key, {extension: image} | label_field(numbers, multi_label))
