"""What lies in tars of images: every member, by its offset, and the reason for each that cannot be an image."""

import io
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np

from data import storage
from data.errors import DataError
from data.packing.source import Skipped
from data.sources.walk import Listing
from data.sources.walk.local import SAME_FILE
from data.sources.walk.names import is_hidden as is_hidden_folder
from data.sources.walk.names import is_system_file

HEADER_CHUNK = 1 << 20  # bytes of a request while headers are read from an object store
HIDDEN = "hidden or system file"
FOLDER = "a folder in a tar; its files are read by their own names"
LINK = "a link in a tar to what is in the tar under its own name"
DANGLING = "a link in a tar that leads to nothing in it"
CIRCLE = "a link in a tar that leads back to itself"
SPARSE = "a sparse file in a tar; unpack the tar and pack its files again without --sparse"
DEVICE = "a pipe or device in a tar"
OTHER = "a member of unknown type in a tar"
BEHIND = "bytes behind the end of the archive; if that is a second archive, unpack both"


class Archive(NamedTuple):
    """A tar: its file, its first byte and its end there, and its name without the extension: the class of a class tar.

    `end`: None is the end of the file.
    """

    url: str
    begin: int
    name: str
    end: int | None = None


class Members(NamedTuple):
    """The regular files in a tar: their names, and int64 (n,) offsets and sizes of their contents in the file at `url`.

    `skipped`: the members of other types.
    """

    url: str
    names: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray
    skipped: Sequence[Skipped] = ()


def is_hidden(name: str) -> bool:
    """Whether a system keeps this member for itself: `._001.jpg`, `Thumbs.db`, `__MACOSX/001.jpg`."""
    *folders, base = name.split("/")
    if base.startswith("._") or is_system_file(base):
        return True
    return any(is_hidden_folder(folder) for folder in folders if folder not in (".", ".."))


def check_tars(url: str, listing: Listing) -> None:
    """Check that no tar is among the things that a walk through the folder at `url` left out.

    Raises:
        DataError: one is a folder, or a pipe, or a link that leads nowhere ...
    """
    for folder in listing.folders:
        if folder.endswith(".tar") and "/" not in folder:
            raise DataError(f"{url}: {folder} is a folder; its images would be lost: make a tar of it, or move it away")
    for one in listing.skipped:
        if one.key.endswith(".tar") and "/" not in one.key and not is_hidden(one.key) and one.reason != SAME_FILE:
            raise DataError(f"{url}: {one.key}: {one.reason}; its images would be lost: mend it, or move it away")


def list_members(archive: Archive) -> Members:
    """Every member of a tar, in its order. Only the headers are read.

    Raises:
        DataError: it is not a whole tar.
    """
    names: list[str] = []
    places: list[tuple[int, int]] = []
    others: list[tarfile.TarInfo] = []
    try:
        with storage.reporting(archive.url), storage.open_read(archive.url, HEADER_CHUNK) as file:
            window = _Window(file, archive.begin, archive.end)
            with tarfile.open(fileobj=window, mode="r:") as opened:
                for member in opened:
                    if member.size < 0:
                        raise DataError(f"{archive.url}: {member.name} has an impossible size in {archive.name}")
                    if member.isreg() and not member.issparse():
                        names.append(member.name)
                        places.append((member.offset_data, member.size))
                    else:
                        others.append(member)
                end = opened.offset
            window.seek(end)
            if window.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(f"{archive.url}: cut short: the archive {archive.name} in it has no end")
            behind = _is_more(window)
    except FileNotFoundError as error:
        raise DataError(f"{archive.url}: does not exist") from error
    skipped = _sort_out(archive, names, places, others) if others else []
    table = np.array(places, np.int64).reshape(-1, 2)
    if behind:
        skipped.append(Skipped(posixpath.basename(archive.url) if archive.end is None else archive.name, BEHIND))
    return Members(archive.url, names, table[:, 0], table[:, 1], skipped)


def _sort_out(
    archive: Archive, names: list[str], places: list[tuple[int, int]], others: Sequence[tarfile.TarInfo]
) -> list[Skipped]:
    """Name the members that are no regular files. A link to a hidden file, which is left out, is that file itself."""
    files = {posixpath.normpath(name): place for name, place in zip(names, places, strict=True)}
    rest = {posixpath.normpath(member.name): member for member in others}
    skipped = []
    for member in others:
        target, reason = posixpath.normpath(member.name), _reason(member)
        if reason == LINK:
            target, reason = _follow(member, files, rest)
        if reason == LINK and is_hidden(target) and target in files and not is_hidden(member.name):
            names.append(member.name)
            places.append(files[target])
        else:
            skipped.append(Skipped(posixpath.join(archive.name, member.name), reason))
    return skipped


def _reason(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return FOLDER
    if member.issym() or member.islnk():
        return LINK
    if member.issparse():
        return SPARSE
    return DEVICE if member.isdev() else OTHER


def _follow(
    link: tarfile.TarInfo, files: Mapping[str, tuple[int, int]], others: Mapping[str, tarfile.TarInfo]
) -> tuple[str, str]:
    """(the member that a link leads to, through other links, and the reason)."""
    seen: set[str] = set()
    member: tarfile.TarInfo | None = link
    target = ""
    while member is not None and _reason(member) == LINK:
        folder = posixpath.dirname(member.name) if member.issym() else ""  # a hard link's is the tar's
        target = posixpath.normpath(posixpath.join(folder, member.linkname))
        if target in seen:
            return target, CIRCLE
        seen.add(target)
        if target in files:
            return target, LINK
        member = others.get(target)
    return target, DANGLING if member is None else LINK


def _is_more(file: "_Window") -> bool:
    """Whether anything but zeros follows."""
    while content := file.read(HEADER_CHUNK):
        if content.count(0) < len(content):
            return True
    return False


class _Window(io.RawIOBase):
    """A part of a file, at the positions of the whole. So an archive in an archive cannot run into the next one."""

    def __init__(self, file: IO[bytes], begin: int, end: int | None) -> None:
        self._file, self._end = file, end
        file.seek(begin)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if self._end is not None:
            left = max(self._end - self._file.tell(), 0)
            size = left if size < 0 else min(size, left)
        return self._file.read(size)
