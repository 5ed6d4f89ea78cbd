"""The walk on an object store, and on every other store of fsspec.

A bucket has no folders, only objects with slashes in their names. An empty object whose name ends with a slash marks a
folder, as web consoles make it. So a bucket is listed as one, in pages, and other stores folder by folder. fsspec's
`find` and `walk` would pass over folders that cannot be listed.
"""

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, cast

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from data import storage
from data.sources.walk.listing import HIDDEN, Listing, leaves_out
from data.storage.patience import patiently

BUCKETS = ("gs", "gcs", "s3", "s3a")
NO_NAME = "in a folder without a name"
FOLDER_WITH_BYTES = "object whose name is that of a folder"
LISTING_SECONDS = 3600.0  # of a bucket's whole listing: 14 million objects take most of it

Found = Iterator[tuple[str, int]]
"""(path under the folder, size in bytes) of everything. The path of a folder ends with a slash."""


def walk_store(url: str, entered: Collection[str]) -> Listing:
    """As `walk`, for a folder that is not on a local disk."""
    listing, folders, left_out = Listing(), set[str](), set[str]()
    for path, size in _found(url):
        folder = _left_out(path, folders, left_out, entered)
        if folder is not None:
            left_out.add(folder)
        elif path.startswith("/"):
            listing.skip(path, NO_NAME)
        elif not path.endswith("/"):
            listing.take(path, size)
        elif size:
            listing.skip(path, FOLDER_WITH_BYTES)
    for folder in left_out:
        listing.skip(f"{folder}/", HIDDEN)
    listing.folders = sorted(folders)
    return listing


def _left_out(path: str, folders: set[str], left_out: set[str], entered: Collection[str]) -> str | None:
    """The folder above `path` that is not entered; None if all are, which are added to `folders` then."""
    end = path.find("/")
    while end != -1:
        folder = path[:end]
        if folder not in folders and folder and not folder.endswith("/"):
            if folder in left_out or leaves_out(folder, entered):
                return folder
            folders.add(folder)
        end = path.find("/", end + 1)
    return None


def _found(url: str) -> Found:
    fs, path = storage.resolve(url)
    path = path.rstrip("/")
    fs.invalidate_cache()
    if isinstance(fs, MemoryFileSystem):
        found = _in_memory(fs, path)
    elif any(protocol in fs.protocol for protocol in BUCKETS):
        found = _in_bucket(fs, path)
    else:
        found = _in_folders(url, path)
    return ((name[len(path) + 1 :], size) for name, size in found if len(name) > len(path) + 1)


def _in_bucket(fs: fsspec.AbstractFileSystem, path: str) -> Found:
    objects = patiently(lambda: cast(dict[str, dict[str, Any]], fs.find(path, detail=True, timeout=LISTING_SECONDS)))
    if not any(name.startswith(f"{path}/") for name in objects):
        raise FileNotFoundError(path)
    return ((name, int(found["size"] or 0)) for name, found in objects.items() if name.startswith(f"{path}/"))


def _in_memory(fs: MemoryFileSystem, path: str) -> Found:
    found = {f"{name}/": 0 for name in fs.pseudo_dirs} | {name: file.size for name, file in fs.store.items()}
    if f"{path}/" not in found and not any(name.startswith(f"{path}/") for name in found):
        raise FileNotFoundError(path)
    return ((name, size) for name, size in found.items() if name.startswith(f"{path}/"))


def _in_folders(url: str, path: str) -> Found:
    """Folder by folder. Of a link, a store of this kind says what it leads to, or nothing."""
    waiting = deque([(url, path)])
    while waiting:
        folder, at = waiting.popleft()
        for entry in storage.entries(folder):
            name = f"{at}/{entry.name}"
            if entry.is_folder:
                yield f"{name}/", 0
                waiting.append((storage.join(folder, entry.name), name))
            else:
                yield name, entry.size
