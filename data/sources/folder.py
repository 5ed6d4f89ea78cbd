"""A folder of image files, with one folder for each class or with a table of labels."""

import copy
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from data import storage
from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, ahead, fingerprint, image_field, label_field, read_file
from data.shards import tar
from data.shards.class_names import ClassList, shown
from data.sources.classes.holdout import Holdout, hold_out
from data.sources.classes.numbering import Numbering, number_folders, number_labels
from data.sources.table import Rows, read_rows
from data.sources.walk import images, walk
from data.sources.walk.local import NOWHERE

NO_CLASS_FOLDER = "in no class folder"
NO_ROW = "no row in the label table"
NO_LABEL = "no label in the label table"
NO_PATH = "no path in the label table"
NO_FILE = "in the label table, no such file"


class Folder(Source):
    """Images under a local folder or fsspec URL, at any depth.

    Without a table the classes are the folders directly in it, empty ones too. With a table (CSV or Parquet), each row
    has a `path` relative to the folder and a `label`, or in a multi-label set `labels`. The numbers of the classes are
    those of `data.sources.classes.numbering`.

    Keys are the images' paths without their extension. Dots in the file name become `_`, since WebDataset ends a key at
    the first dot. Keys that would be equal get `~2`, `~3` ...

    Args:
        table: URL of the label table.
        classes: the names of the classes, by number. None: they are those of the folders, or those in the table.

    Raises:
        DataError: there is no such folder, the table cannot be read, or a class has no number.
    """

    found: int

    def __init__(self, url: str, table: str | None = None, classes: ClassList | None = None) -> None:
        self.name = "folder"
        self._url = storage.absolute(url)
        rows = None if table is None else read_rows(table)
        named = () if classes is None else classes.names
        listing = walk(
            self._url, named if rows is None else {posixpath.dirname(posixpath.normpath(p)) for p in rows.paths}
        )
        sizes, unread = images(self._url, listing.files)
        self.found = listing.found
        self.skipped: list[Skipped] = [*listing.skipped, *unread]
        if table is None or rows is None:
            labels = self._by_folder(sizes, listing.folders, classes)
        else:
            labels = self._by_table(sizes, listing.files, rows, table, classes)
        paths = sorted(labels)
        self._take(paths, unique_keys(paths), [labels[path] for path in paths], [sizes[path] for path in paths])

    def split(self, holdout: Holdout, seed: int = 0) -> dict[str, "Folder"]:
        """{"train": ..., "val": ...} with the same classes. The same seed holds out the same images.

        Raises:
            DataError: so many images cannot be held out.
        """
        held = hold_out(self._labels, holdout.of(len(self)), seed)
        train, val = self._chosen("train", np.flatnonzero(~held)), self._chosen("val", np.flatnonzero(held))
        val.skipped, val.warnings, val.found = [], (), len(val)
        train.found = self.found - len(val)
        return {"train": train, "val": val}

    def _chosen(self, split: str, positions: np.ndarray) -> "Folder":
        """The images at these positions, as a source of its own."""
        chosen, places = copy.copy(self), positions.tolist()
        chosen.name = f"{self.name}/{split}"
        chosen._take(
            *([one[place] for place in places] for one in (self._paths, self._keys, self._labels, self._sizes))
        )
        return chosen

    def _take(self, paths: list[str], keys: list[str], labels: list[tuple[int, ...]], sizes: list[int]) -> None:
        self._paths, self._keys, self._labels, self._sizes = paths, keys, labels, sizes
        lines = (f"{path}\t{size}\t{numbers}" for path, size, numbers in zip(paths, sizes, labels, strict=True))
        self.fingerprint = fingerprint([*self.class_names, *lines])
        self.mean_bytes = sum(sizes) / max(len(paths), 1)

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

    def _by_folder(
        self, sizes: dict[str, int], folders: Sequence[str], classes: ClassList | None
    ) -> dict[str, tuple[int, ...]]:
        used = {path.split("/")[0] for path in sizes if "/" in path}
        empty = {folder for folder in folders if "/" not in folder} if classes is None else set()
        numbers = self._number(number_folders(used | empty, self._url, classes))
        lost = [one.key for one in self.skipped if one.reason == NOWHERE and not set("./") & set(one.key)]
        if lost and classes is None:
            text = f"{shown(lost[0])} is a link that leads nowhere; if it is a class, those after it have other numbers"
            self.warnings = [*self.warnings, text]
        self.skipped += [Skipped(path, NO_CLASS_FOLDER) for path in sorted(sizes) if "/" not in path]
        return {path: (numbers[path.split("/")[0]],) for path in sizes if "/" in path}

    def _by_table(
        self, sizes: dict[str, int], files: Mapping[str, int], rows: Rows, table: str, classes: ClassList | None
    ) -> dict[str, tuple[int, ...]]:
        self.multi_label = rows.multi_label
        numbers = self._number(number_labels(rows.labels, rows.paths, table, classes))
        found: dict[str, tuple[int, ...]] = {}
        absent = []
        for place, (path, labels) in enumerate(zip(rows.paths, rows.labels, strict=True), 1):
            if not path.strip():
                absent.append(Skipped(f"row {place}", NO_PATH))
                continue
            path = posixpath.normpath(path)
            if path in found:
                raise DataError(f"{table}: {path} is listed more than once")
            found[path] = tuple(numbers[label] for label in labels if label in numbers)
        absent += [Skipped(path, NO_FILE) for path in sorted(found.keys() - files.keys())]
        self.found += len(absent)
        listed = found.keys() & sizes.keys()
        unlabelled = set() if self.multi_label else {path for path in listed if not found[path]}
        self.skipped += [Skipped(path, NO_ROW) for path in sorted(sizes.keys() - found.keys())]
        self.skipped += [Skipped(path, NO_LABEL) for path in sorted(unlabelled)] + absent
        return {path: found[path] for path in listed - unlabelled}

    def _number(self, numbering: Numbering) -> Mapping[str, int]:
        self.class_names, self.num_classes = numbering.class_names, numbering.num_classes
        self.warnings = numbering.warnings
        return numbering.numbers


def unique_keys(paths: Sequence[str]) -> list[str]:
    """A WebDataset key for each path. Different paths have different keys."""
    keys = [_key(path) for path in paths]
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


def _key(path: str) -> str:
    """The path without its extension. Names that WebDataset would not take are changed."""
    name = posixpath.basename(path)
    stem = name.rpartition(".")[0] or name
    key = posixpath.join(posixpath.dirname(path), stem.replace(".", "_"))
    return key if tar.split_name(f"{key}.jpg") else f"class{key}"  # WebDataset takes __NAME__/... for its own notes


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
