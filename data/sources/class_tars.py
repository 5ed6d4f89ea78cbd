"""Tars of one class each, as ImageNet has them: in a folder, or inside one large tar. They are never unpacked: their
headers are read once, and then each image by its offset in the file.
"""

import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from data import storage
from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, ahead, fingerprint, image_field, read_file

HEADER_CHUNK = 1 << 20  # bytes of a request while headers are read from an object store


class Archive(NamedTuple):
    """A tar: its file, its first byte there, and its name without the extension, which is the class of a class tar."""

    url: str
    begin: int
    name: str


class Members(NamedTuple):
    """The files in a tar: their names, and int64 (n,) offsets and sizes of their contents in the file at `url`."""

    url: str
    names: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray


class TarImages(Source):
    """Images inside tars, with one label each.

    Args:
        urls: the files.
        images: a row for each image: `name`; `file`, its number in `urls`; `offset` and `size` there; `label`. In
            Arrow the 14 million of ImageNet-21k take 0.7 GB.
        class_names: by class number.
    """

    def __init__(self, name: str, urls: Sequence[str], images: pa.Table, class_names: Sequence[str]) -> None:
        self.name = name
        self.class_names, self.num_classes = class_names, len(class_names)
        self._urls, self._images = urls, images
        self.fingerprint = fingerprint([*class_names, *_lines(images)])
        self.mean_bytes = float(pa.compute.mean(images["size"]).as_py() or 0)

    def __len__(self) -> int:
        return len(self._images)

    def reading(self, positions: np.ndarray) -> Reading:
        chosen = self._images.take(positions).to_pydict()
        urls = [self._urls[number] for number in chosen.pop("file")]
        return partial(_read, chosen["name"], urls, chosen["offset"], chosen["size"], chosen["label"])

    def chosen(self, name: str, positions: np.ndarray) -> "TarImages":
        """A source of the images at these positions."""
        return TarImages(name, self._urls, self._images.take(positions), self.class_names)


def tar_images(
    name: str, members: Sequence[Members], labels: Sequence[np.ndarray], class_names: Sequence[str]
) -> TarImages:
    """The files of these tars; `labels` holds an int64 (n,) for each tar."""
    tables = [
        pa.table(
            {
                "name": pa.array(part.names, pa.large_string()),
                "file": np.full(len(part.names), number),
                "offset": part.offsets,
                "size": part.sizes,
                "label": numbers,
            }
        )
        for number, (part, numbers) in enumerate(zip(members, labels, strict=True))
    ]
    return TarImages(name, [part.url for part in members], pa.concat_tables(tables).combine_chunks(), class_names)


def tars_in(url: str) -> list[Archive]:
    """The tars in a folder, or in a tar of tars, by name.

    Raises:
        DataError: there are none.
    """
    url = storage.absolute(url)
    if url.endswith((".gz", ".tgz")):
        raise DataError(f"{url}: compressed tars cannot be read from the middle: decompress it (gunzip) first")
    if url.endswith(".tar"):
        outer = list_members(Archive(url, 0, ""))
        found = [
            Archive(url, int(begin), name.rpartition("/")[2].removesuffix(".tar"))
            for name, begin in zip(outer.names, outer.offsets, strict=True)
            if name.endswith(".tar")
        ]
    else:
        found = [Archive(storage.join(url, name), 0, name[:-4]) for name in storage.matching(url, "*.tar")]
    if not found:
        raise DataError(f"{url}: no .tar files of classes there")
    return sorted(found, key=lambda archive: archive.name)


def list_members(archive: Archive) -> Members:
    """The regular files of a tar, in its order. Only the headers are read.

    Raises:
        DataError: it is not a whole tar.
    """
    names, places = [], []
    try:
        with storage.reporting(archive.url), storage.open_read(archive.url, HEADER_CHUNK) as file:
            file.seek(archive.begin)
            end = archive.begin
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for member in opened:
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if member.isreg():
                        names.append(member.name)
                        places.append((member.offset_data, member.size))
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(f"{archive.url}: cut short: the archive {archive.name} in it has no end")
    except FileNotFoundError as error:
        raise DataError(f"{archive.url}: does not exist") from error
    table = np.array(places, np.int64).reshape(-1, 2)
    return Members(archive.url, names, table[:, 0], table[:, 1])


def class_tars(name: str, url: str) -> TarImages:
    """Every image of the class tars at `url`, classes numbered by the sorted names of the tars.

    Raises:
        DataError: there are no tars, or one cannot be read.
    """
    archives = tars_in(url)
    members = list(ahead(list_members, archives))
    labels = [np.full(len(part.names), number, np.int64) for number, part in enumerate(members)]
    return tar_images(name, members, labels, [archive.name for archive in archives])


def _lines(images: pa.Table) -> Iterator[str]:
    """The rows of the listing as text, thousands at a time."""
    for batch in images.select(["name", "offset", "size", "label"]).to_batches(max_chunksize=1 << 16):
        yield repr([column.to_pylist() for column in batch.columns])


def _read(
    names: list[str], urls: list[str], offsets: list[int], sizes: list[int], labels: list[int]
) -> Iterator[Item | Skipped]:
    ranges = [(url, begin, begin + size) for url, begin, size in zip(urls, offsets, sizes, strict=True)]
    contents = ahead(lambda one: read_file(*one), ranges)
    for name, url, label, size, content in zip(names, urls, labels, sizes, contents, strict=True):
        if len(content) != size:
            raise DataError(f"{url}: cut short: {len(content):,} of the {size:,} bytes of {name} are there")
        try:
            extension, image = image_field(content)
        except BadSample as bad:
            yield Skipped(name, bad.cause)
            continue
        yield Item(name.rpartition(".")[0], {extension: image, "cls": str(label).encode()})
