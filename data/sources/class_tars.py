"""Tars of one class each, as ImageNet has them: in a folder, or inside one large tar. They are never unpacked: their
headers are read once, and then each image by its offset in the file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute

from data import storage
from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, ahead, fingerprint, image_field, label_field, read_file
from data.sources.classes.numbering import number_folders
from data.sources.tars.keys import Keys, binary, texts
from data.sources.tars.members import HIDDEN, Archive, Members, check_tars, is_hidden, list_members
from data.sources.walk import walk

COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
LARGEST_IMAGE = 1 << 30  # bytes
TOO_LARGE = "too large for an image"
NO_CLASS_TAR = "not a tar of a class"


class TarImages(Source):
    """Images inside tars, with one label each, or with several.

    Args:
        urls: the files.
        images: a row for each image: `name`, as bytes; `file`, its number in `urls`; `offset` and `size` there;
            `label`. Of images with several labels `label` is the class of their tar, `labels` are all, and `copies` is
            the number of files that hold the image. In Arrow the 14 million of ImageNet-21k take 0.7 GB.
        class_names: by class number.
        skipped: what else lies there.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        images: pa.Table,
        class_names: Sequence[str],
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.name = name
        self.class_names, self.num_classes = class_names, len(class_names)
        self.multi_label = "labels" in images.column_names
        self.images, self.skipped = images, skipped
        if "copies" in images.column_names:
            self.merged = int(pa.compute.sum(images["copies"]).as_py() or 0) - len(images)
        self.found = len(images) + self.merged + len(skipped)
        self._urls = urls
        self._keys = Keys(images["name"], images["label"].to_numpy(), class_names)
        version = ["keys 2"] if self._keys.differ else []  # earlier versions packed other samples
        self.fingerprint = fingerprint([*version, *class_names, *_lines(images)])
        self.mean_bytes = float(pa.compute.mean(images["size"]).as_py() or 0)

    def __len__(self) -> int:
        return len(self.images)

    def reading(self, positions: np.ndarray) -> Reading:
        chosen = self.images.take(positions)
        label = chosen["label"].to_pylist()
        labels = chosen["labels"].to_pylist() if self.multi_label else [[number] for number in label]
        keys = self._keys.take(positions, list(texts(chosen["name"])), label)
        return partial(_read, keys, *self.places(positions), labels, self.multi_label)

    def places(self, positions: np.ndarray) -> tuple[list[str], list[tuple[str, int, int]]]:
        """(TAR/NAME, (URL, first byte, end)) of each of these images."""
        chosen = self.images.take(positions)
        fronts = [self.class_names[number] for number in chosen["label"].to_pylist()]
        urls = [self._urls[number] for number in chosen["file"].to_pylist()]
        begins, sizes = chosen["offset"].to_pylist(), chosen["size"].to_pylist()
        return (
            [f"{front}/{name}" for front, name in zip(fronts, texts(chosen["name"]), strict=True)],
            [(url, begin, begin + size) for url, begin, size in zip(urls, begins, sizes, strict=True)],
        )

    def chosen(self, name: str, positions: np.ndarray, skipped: Sequence[Skipped] = ()) -> "TarImages":
        """A source of the images at these positions."""
        return self.of(name, self.images.take(positions), skipped)

    def of(self, name: str, images: pa.Table, skipped: Sequence[Skipped]) -> "TarImages":
        """A source of these images, which are in the same files."""
        return TarImages(name, self._urls, images, self.class_names, skipped)


def tar_images(
    name: str,
    members: Sequence[Members],
    labels: Sequence[np.ndarray],
    class_names: Sequence[str],
    skipped: Sequence[Skipped] = (),
) -> TarImages:
    """The files of these tars; `labels` holds an int64 (n,) for each tar."""
    tables = [
        pa.table(
            {
                "name": binary(part.names),
                "file": np.full(len(part.names), number),
                "offset": part.offsets,
                "size": part.sizes,
                "label": numbers,
            }
        )
        for number, (part, numbers) in enumerate(zip(members, labels, strict=True))
    ]
    others = [*skipped, *(one for part in members for one in part.skipped)]
    images = pa.concat_tables(tables).combine_chunks()
    return TarImages(name, [part.url for part in members], images, class_names, others)


def tars_in(url: str) -> tuple[list[Archive], list[Skipped]]:
    """The tars in a folder, or in a tar of tars, by name; and what else lies there.

    Raises:
        DataError: there are none; one is compressed, so that a class would be lost; two have one name.
    """
    url = storage.absolute(url)
    is_file = url.endswith((".tar", *COMPRESSED)) and not storage.is_folder(url)
    if is_file and not url.endswith(".tar"):
        raise DataError(f"{url}: compressed tars cannot be read from the middle: decompress it (gunzip) first")
    found, others = _in_a_tar(url) if is_file else _in_a_folder(url)
    if not found:
        raise DataError(f"{url}: no .tar files of classes there")
    name, count = Counter(archive.name for archive in found).most_common(1)[0]
    if count > 1:
        raise DataError(f"{url}: {count} tars are called {name}: a class has one tar; rename or join them")
    names = {archive.name for archive in found}
    beside = [other.key for other in others if other.reason == NO_CLASS_TAR and (is_file or "/" not in other.key)]
    for other in beside:
        lost = other.rpartition("/")[2].partition(".")[0]
        if other.lower().endswith((".tar", *COMPRESSED)) and lost not in names:
            advice = f"make it {lost}.tar, or move it away"
            raise DataError(f"{url}: {other} is no class tar, and there is no {lost}.tar: {advice}")
    return sorted(found, key=lambda archive: archive.name), others


def class_tars(name: str, url: str) -> TarImages:
    """Every image of the class tars at `url`, classes numbered by the names of the tars.

    Raises:
        DataError: there are no tars, one cannot be read, or their names leave open which class they are.
    """
    archives, skipped = tars_in(url)
    numbering = number_folders([archive.name for archive in archives], url, what="class tars", advice="rename them")
    members = list(ahead(list_members, archives))
    labels = [
        np.full(len(part.names), numbering.numbers[archive.name], np.int64)
        for archive, part in zip(archives, members, strict=True)
    ]
    source = tar_images(name, members, labels, numbering.class_names, skipped)
    source.warnings = numbering.warnings
    return source


def _in_a_tar(url: str) -> tuple[list[Archive], list[Skipped]]:
    outer = list_members(Archive(url, 0, ""))
    tars, others = [], list(outer.skipped)
    for name, begin, size in zip(outer.names, outer.offsets.tolist(), outer.sizes.tolist(), strict=True):
        if _is_class_tar(name):
            tars.append(Archive(url, begin, name.rpartition("/")[2].removesuffix(".tar"), begin + size))
        else:
            others.append(_no_class_tar(name))
    return tars, others


def _in_a_folder(url: str) -> tuple[list[Archive], list[Skipped]]:
    listing = walk(url)
    check_tars(url, listing)
    names = sorted(listing.files)
    tars = [name for name in names if "/" not in name and _is_class_tar(name)]
    others = [*listing.skipped, *(_no_class_tar(name) for name in sorted({*names} - {*tars}))]
    return [Archive(storage.join(url, name), 0, name.removesuffix(".tar")) for name in tars], others


def _is_class_tar(name: str) -> bool:
    return name.endswith(".tar") and not is_hidden(name)


def _no_class_tar(name: str) -> Skipped:
    return Skipped(name, HIDDEN if is_hidden(name) else NO_CLASS_TAR)


def _lines(images: pa.Table) -> Iterator[str]:
    """The rows of the listing as text, thousands at a time."""
    columns = ["offset", "size", "labels" if "labels" in images.column_names else "label"]
    for batch in images.select(["name", *columns]).to_batches(max_chunksize=1 << 16):
        names, *rest = batch.columns
        yield repr([list(texts(names)), *(column.to_pylist() for column in rest)])


def _read(
    keys: list[str],
    names: list[str],
    places: list[tuple[str, int, int]],
    labels: list[list[int]],
    multi_label: bool,
) -> Iterator[Item | Skipped]:
    contents = read_places(names, places)
    for key, name, numbers, content in zip(keys, names, labels, contents, strict=True):
        if is_hidden(name):
            yield Skipped(name, HIDDEN)
            continue
        if content is None:
            yield Skipped(name, TOO_LARGE)
            continue
        try:
            extension, image = image_field(content)
        except BadSample as bad:
            yield Skipped(name, bad.cause)
            continue
        yield Item(key, {extension: image} | label_field(numbers, multi_label))


def read_places(names: Sequence[str], places: Sequence[tuple[str, int, int]]) -> Iterator[bytes | None]:
    """The bytes at (URL, first byte, end), of the members with these names. None: too many for an image, not read.

    Raises:
        DataError: a file cannot be read, or is shorter than it was.
    """
    for name, (url, begin, end), content in zip(names, places, ahead(_read_place, places), strict=True):
        if content is not None and len(content) != end - begin:
            raise DataError(f"{url}: cut short: {len(content):,} of the {end - begin:,} bytes of {name} are there")
        yield content


def _read_place(place: tuple[str, int, int]) -> bytes | None:
    url, begin, end = place
    return read_file(url, begin, end) if end - begin <= LARGEST_IMAGE else None
