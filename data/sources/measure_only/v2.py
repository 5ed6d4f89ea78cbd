"""ImageNet-V2: 10,000 new test images of ImageNet's classes, collected as the first ones were ("Do ImageNet Classifiers
Generalize to ImageNet?", 2019). Its folders "0" ... "999" are class numbers; sorted as text they would be other ones.
"""

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from data import storage
from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, fingerprint, image_field, label_field
from data.shards.class_names import ClassList
from data.sources.class_tars import LARGEST_IMAGE, TOO_LARGE
from data.sources.folder import Folder, unique_keys
from data.sources.measure_only import IMAGENET_CLASSES, measure_only
from data.sources.tars.members import FOLDER, HIDDEN, OTHER, is_hidden

NAME = "imagenet-v2"
ARCHIVES = (".tar", ".tar.gz", ".tgz")
NO_CLASS = "in no folder 0 ... 999"
TWICE = "a second file with this name in the archive"
GZIP = b"\x1f\x8b"
CHUNK = 8 << 20  # bytes of a request


def imagenet_v2(url: str) -> Source:
    """The images in one archive as it is published, or in the folder with the folders 0 ... 999.

    Raises:
        DataError: neither is there, or a folder is not called as a class number.
    """
    url = storage.absolute(url)
    if url.endswith(ARCHIVES) and not storage.is_folder(url):
        return ArchivedClasses(url)
    source = Folder(url, classes=ClassList(url, tuple(map(str, range(IMAGENET_CLASSES)))))
    source.name = NAME
    source.class_names = ()
    source.about = measure_only("ImageNet-V2")
    return source


class ArchivedClasses(Source):
    """Images in the folders 0 ... 999 of a tar, which may be compressed: so it is read whole, once for the listing and
    once for each shard.

    Raises:
        DataError: there is no such archive, it is damaged, or holds no class folder.
    """

    name = NAME
    num_classes = IMAGENET_CLASSES

    def __init__(self, url: str) -> None:
        self._url = url
        self.about = measure_only("ImageNet-V2")
        sizes: dict[str, int] = {}
        skipped: list[Skipped] = []
        for member, _ in _members(url):
            reason = _why_not(member)
            if reason or member.name in sizes:
                skipped.append(Skipped(member.name, reason or TWICE))
            else:
                sizes[member.name] = member.size
        if not sizes:
            raise DataError(f"{url}: no image in a folder 0 ... {IMAGENET_CLASSES - 1}")
        self._names = sorted(sizes)
        self._keys = unique_keys(self._names)
        self.skipped, self.found = skipped, len(sizes) + len(skipped)
        self.fingerprint = fingerprint(f"{name}\t{sizes[name]}" for name in self._names)
        self.mean_bytes = sum(sizes.values()) / len(sizes)

    def __len__(self) -> int:
        return len(self._names)

    def reading(self, positions: np.ndarray) -> Reading:
        chosen = {self._names[place]: self._keys[place] for place in positions.tolist()}
        return partial(_read, self._url, chosen)


def _read(url: str, keys: Mapping[str, str]) -> Iterator[Item | Skipped]:
    contents: dict[str, bytes] = {}
    for member, archive in _members(url):
        if member.name in keys and member.name not in contents and not _why_not(member):
            file = archive.extractfile(member)
            assert file is not None
            contents[member.name] = file.read()
    for name, key in keys.items():
        if name not in contents:
            raise DataError(f"{url}: {name} is gone since the images were listed")
        try:
            extension, image = image_field(contents.pop(name))
        except BadSample as bad:
            yield Skipped(name, bad.cause)
            continue
        yield Item(key, {extension: image} | label_field([_class_of(name)], multi_label=False))


def _why_not(member: tarfile.TarInfo) -> str:
    """Why a member is no image of a class; empty if it may be one."""
    if not member.isreg():
        return FOLDER if member.isdir() else OTHER
    if is_hidden(member.name):
        return HIDDEN
    if _class_of(member.name) < 0:
        return NO_CLASS
    return TOO_LARGE if member.size > LARGEST_IMAGE else ""


def _class_of(name: str) -> int:
    """The class number of a file's folder; -1 if it is none."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return int(folder) if folder.isascii() and folder.isdigit() and int(folder) < IMAGENET_CLASSES else -1


def _members(url: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Every member, with the archive in which it can be read before the next one comes.

    Raises:
        DataError: the archive does not exist, or is not whole.
    """
    try:
        with storage.reporting(url), storage.open_read(url, CHUNK) as file:
            packed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            content = gzip.GzipFile(fileobj=file) if packed else file
            with tarfile.open(fileobj=content, mode="r:") as archive:
                for member in archive:
                    yield member, archive
                content.seek(archive.offset)
                if content.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise DataError(f"{url}: cut short: the archive has no end")
                while content.read(CHUNK):  # to the end, where a compressed file has its checksum
                    pass
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist") from error
