"""The walk on a local disk, with links, pipes, devices and rights.

A link to a file or a folder is followed, with two exceptions. What the walk meets under its own name is not taken a
second time, and a link to a folder above itself would have no end. Of two links to one file elsewhere, both count.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Collection

from data.errors import DataError
from data.sources.walk.listing import HIDDEN, Listing, leaves_out

GONE = "gone while the folder was listed"
NOWHERE = "link that leads nowhere"
CIRCLE = "link that leads back to itself"
ABOVE = "link to a folder that it lies in"
SAME_FILE = "link to a file that is here under its own name"
SAME_FOLDER = "link to a folder that is here under its own name"
AGAIN = "folder that is here through another link"
KINDS = {  # of what is neither a file nor a folder
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def walk_local(root: str, entered: Collection[str]) -> Listing:
    """As `walk`, for a local folder."""
    if os.path.exists(root) and not os.path.isdir(root):
        raise DataError(f"{root}: is no folder; give the folder that holds the images")
    return _Walk(root, entered).listing


class _Walk:
    """First everything under the root itself, and then each link that was met there, with all that it leads to."""

    def __init__(self, root: str, entered: Collection[str]) -> None:
        self.listing = Listing()
        self._root, self._entered = root, entered
        self._real_root = os.path.realpath(root, strict=True)
        own = _Reached({self._real_root: ""})
        links: deque[str] = deque()
        self._enter("", self._real_root, own, links)
        for link in sorted(links):
            followed = _Reached({}, own)
            nested = deque([link])
            while nested:
                self._follow(nested.popleft(), followed, nested)

    def _enter(self, path: str, real: str, reached: "_Reached", links: deque[str]) -> None:
        """Take everything that lies in a folder, but for the links, which are collected."""
        waiting = deque([(path, real)])
        while waiting:
            path, real = waiting.popleft()
            for entry in _scan(real):
                inner, inner_real = f"{path}/{entry.name}" if path else entry.name, os.path.join(real, entry.name)
                if entry.is_symlink():
                    links.append(inner)
                elif not entry.is_dir(follow_symlinks=False):
                    self._take(inner, _status(entry))
                elif leaves_out(inner, self._entered):
                    self.listing.skip(f"{inner}/", HIDDEN)
                elif reached.folder(inner_real) is not None:
                    self.listing.skip(f"{inner}/", AGAIN)
                else:
                    self.listing.folders.append(inner)
                    reached.folders[inner_real] = inner
                    waiting.append((inner, inner_real))

    def _follow(self, link: str, reached: "_Reached", links: deque[str]) -> None:
        """Take what a link leads to."""
        place = f"{self._root}/{link}"
        try:
            status = os.stat(place)
            real = os.path.realpath(place, strict=True)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise DataError(
                    f"{place}: cannot be followed ({error.strerror}); make what it leads to readable"
                ) from error
            self.listing.skip(link, CIRCLE if error.errno == errno.ELOOP else NOWHERE)
            return
        if not stat.S_ISDIR(status.st_mode):
            folder = reached.folder(os.path.dirname(real))
            own_name = None if folder is None else f"{folder}/{os.path.basename(real)}".lstrip("/")
            if own_name is not None and own_name in self.listing.files:
                self.listing.skip(link, SAME_FILE)
            else:
                self._take(link, status, "link to a ")
        elif leaves_out(link, self._entered):
            self.listing.skip(f"{link}/", HIDDEN)
        elif _is_in(os.path.realpath(os.path.dirname(place)), real) or _is_in(self._real_root, real):
            self.listing.skip(f"{link}/", ABOVE)
        elif reached.folder(real) is not None:
            self.listing.skip(f"{link}/", SAME_FOLDER)
        else:
            self.listing.folders.append(link)
            reached.folders[real] = link
            self._enter(link, real, reached, links)

    def _take(self, path: str, status: os.stat_result | None, before: str = "") -> None:
        if status is None:
            self.listing.skip(path, GONE)
        elif stat.S_ISREG(status.st_mode):
            self.listing.take(path, status.st_size)
        else:
            self.listing.skip(path, before + KINDS.get(stat.S_IFMT(status.st_mode), "unknown kind of file"))


class _Reached:
    """The folders that the walk has entered: path by real place. A nested one also knows those outside it."""

    def __init__(self, folders: dict[str, str], outer: "_Reached | None" = None) -> None:
        self.folders = folders
        self._outer = outer

    def folder(self, real: str) -> str | None:
        """The path of the folder at a real place; None if it was not entered."""
        if real in self.folders or self._outer is None:
            return self.folders.get(real)
        return self._outer.folder(real)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What the disk says about a file; None if it was deleted meanwhile."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:  # a folder with the right to list it, but not to enter it
        raise _unlisted(os.path.dirname(entry.path), error) from error


def _unlisted(folder: str, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot be listed ({error.strerror}); its images would be lost: make it readable, or move it away"
    )


def _is_in(place: str, folder: str) -> bool:
    """Whether the real path `place` is `folder` or lies in it."""
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")
