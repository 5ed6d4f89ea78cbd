"""What is in a folder, and its removal. Names are literal, so that a folder `v[1]` is never taken for `v1`.

`fs.glob`, `fs.rm` and `fs.expand_path` of fsspec take the whole path for a pattern, and its `find` and `glob` leave out
folders that cannot be listed. So none of them is used here: a folder that cannot be listed is an error of its store.
"""

import fnmatch
import os
import posixpath
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.storage.patience import limit, limited, may_pass, patiently
from data.storage.urls import BUCKETS, is_local, is_web, join, resolve

REMOVALS = 16  # requests at a time that delete files


@dataclass(frozen=True)
class Entry:
    """What is in a folder. `size` is in bytes, 0 if the store does not say; a link to a folder is no folder."""

    name: str
    size: int
    is_folder: bool


def entries(folder: str) -> list[Entry]:
    """What is in `folder`, in any order.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no folder. Of a bucket's, the list may also be empty.
        PermissionError, OSError, DataError, ...: the store cannot list it.
    """
    fs, path = resolve(folder)
    if isinstance(fs, LocalFileSystem):
        return _scan(path)
    if is_web(fs):
        from data.storage import web

        return [Entry(*found) for found in patiently(lambda: web.entries(fs, path, limit(0)))]
    return _ls(fs, path)


def contents(folder: str) -> dict[str, int]:
    """Size in bytes of each file in `folder`, by name; of a folder in it, any number. Empty if there is no folder."""
    return {entry.name: entry.size for entry in _entries_if_any(folder)}


def matching(folder: str, pattern: str) -> list[str]:
    """Names in `folder` that match a glob pattern, sorted. Empty if the folder does not exist."""
    return sorted(entry.name for entry in _entries_if_any(folder) if fnmatch.fnmatchcase(entry.name, pattern))


def is_outage(error: Exception, folder: str) -> bool:
    """Whether an error of reading a file in `folder` comes from its store, and may pass; else the file is at fault.

    On a disk, a bad sector and a mount that is away are the same error; only with the first one can the folder be
    listed.
    """
    if not may_pass(error):
        return False
    if isinstance(error, OSError) and is_local(folder):
        try:
            contents(folder)
        except OSError:
            return True
        return False
    return True


def remove_folder(url: str) -> None:
    """Delete a folder and everything in it, if it exists. Of a link to a folder, only the link goes."""
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        with suppress(FileNotFoundError):
            if os.path.islink(path):
                os.remove(path)
            else:
                shutil.rmtree(path)
        return
    if _is_flat(fs):
        with ThreadPoolExecutor(REMOVALS) as pool:
            list(pool.map(partial(_remove_file, fs), [f"{path}/{name}" for name in _under(fs, path)]))
        return
    for name, entry in [*_walk(url)][::-1]:  # what is in a folder comes before the folder
        if entry.is_folder:
            _remove_empty(fs, f"{path}/{name}")
        else:
            _remove_file(fs, f"{path}/{name}")
    _remove_empty(fs, path)


def _remove_file(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):  # an earlier try has deleted it, and its answer was lost
        patiently(partial(fs.rm_file, path, **limited(fs)))


def _remove_empty(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with suppress(FileNotFoundError):  # a folder that was only part of the names in it
        patiently(partial(fs.rmdir, path))


def _is_flat(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a store has no folders: only objects with slashes in their names."""
    return any(protocol in fs.protocol for protocol in BUCKETS)


def _under(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """What a bucket says of every object under `path`, by its path there. A name with a final slash marks a folder."""

    def attempt() -> dict[str, dict[str, Any]]:
        fs.invalidate_cache()
        return cast(dict[str, dict[str, Any]], fs.find(path, detail=True, **limited(fs)))

    try:
        found = patiently(attempt)
    except FileNotFoundError:
        return {}
    return {name[len(path) + 1 :]: entry for name, entry in found.items() if name.startswith(f"{path}/")}


def _walk(folder: str, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """Every file and folder under `folder` with its path, which begins with `prefix`. A folder precedes its content."""
    for entry in _entries_if_any(folder):
        yield f"{prefix}{entry.name}", entry
        if entry.is_folder:
            yield from _walk(join(folder, entry.name), f"{prefix}{entry.name}/")


def _entries_if_any(folder: str) -> list[Entry]:
    try:
        return entries(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _scan(path: str) -> list[Entry]:
    with os.scandir(path) as found:
        return [Entry(entry.name, _size(entry), entry.is_dir(follow_symlinks=False)) for entry in found]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link that leads nowhere, or a file that was deleted meanwhile
        return 0


def _ls(fs: fsspec.AbstractFileSystem, path: str) -> list[Entry]:
    def attempt() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        return cast(list[dict[str, Any]], fs.ls(path, detail=True, **limited(fs)))

    return [
        Entry(posixpath.basename(entry["name"].rstrip("/")), int(entry["size"] or 0), entry["type"] == "directory")
        for entry in patiently(attempt)
        if entry["name"].strip("/") != path.strip("/")  # of a file, and of an object that marks the folder
    ]
