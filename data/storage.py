"""Bytes by URL: local paths, gs://, s3://, memory:// and whatever else fsspec knows.

Every function resolves its file system from the URL when it is called and keeps none: fsspec caches instances by
process and thread, and an object made before a fork (a gcsfs session, an event loop) does not survive it.
"""

import os
import posixpath
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast
from urllib.parse import urlsplit

# gcsfs would ask a bucket's storage layout before its first operation, and wait for a minute where it gets no answer.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.errors import DataError


def resolve(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url` and the path in it.

    Raises:
        DataError: the protocol is unknown or its package is not installed.
    """
    try:
        return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.core.url_to_fs(os.path.expanduser(url)))
    except Exception as error:  # a back end may connect here already, and each has errors of its own
        raise DataError(f"{url}: {' '.join(str(error).split()) or type(error).__name__}") from error


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn what a back end raises into one line about `url`. Each has errors of its own for rights, names and networks.

    Raises:
        DataError: for all of them except FileNotFoundError, which means the same everywhere and passes.
    """
    try:
        yield
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{url}: cannot be opened ({type(error).__name__}: {reason})") from error


def check_reachable(url: str) -> None:
    """Try for three seconds to reach the server of a gs:// URL; other URLs pass.

    gcsfs takes most of a minute, and pages of log, to say that there is no network.

    Raises:
        DataError: nobody answers there.
    """
    if not url.startswith(("gs://", "gcs://")) or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    server = urlsplit(os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com")
    if server.hostname is None:
        return  # an emulator's address in a form that only gcsfs understands
    try:
        socket.create_connection((server.hostname, server.port or 443), timeout=3.0).close()
    except OSError as error:
        raise DataError(f"{url}: cannot reach {server.hostname} ({error.strerror or error})") from error


def absolute(url: str) -> str:
    """The same place from any working directory: workers may change theirs."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def is_absolute(url: str) -> bool:
    """Whether `url` says where it is by itself: a protocol, or a local path from the root or from home."""
    return "://" in url or url.startswith(("/", "~"))


def join(folder: str, name: str) -> str:
    """`name` inside the URL `folder`, or `name` itself when it is absolute."""
    return name if is_absolute(name) else f"{folder.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder that holds `url`."""
    head, _, tail = url.rpartition("://")
    folder = posixpath.dirname(tail.rstrip("/"))
    return f"{head}://{folder}" if head else folder or "."


def read(url: str) -> bytes:
    """The whole content. Raises what the file system raises: FileNotFoundError, PermissionError, OSError ..."""
    fs, path = resolve(url)
    return cast(bytes, fs.cat_file(path))


def read_range(url: str, begin: int, end: int) -> bytes:
    """Bytes begin .. end-1, in one request. Shorter when the object ends earlier."""
    fs, path = resolve(url)
    return cast(bytes, fs.cat_file(path, start=begin, end=end))


def open_read(url: str, chunk: int) -> IO[bytes]:
    """A file to read from start to end in pieces of about `chunk` bytes."""
    fs, path = resolve(url)
    return cast(IO[bytes], fs.open(path, "rb", block_size=chunk, cache_type="readahead"))


def open_write(url: str) -> IO[bytes]:
    """A file to write; folders are made as needed. On object stores it appears when it is closed."""
    fs, path = resolve(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    return cast(IO[bytes], fs.open(path, "wb"))


def write_atomic(url: str, content: bytes) -> None:
    """Put `content` at `url` so that a reader sees the old or the new whole, never a part.

    An object store's put is atomic by itself; on a local disk the bytes go beside and are moved over.
    """
    fs, path = resolve(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    if isinstance(fs, LocalFileSystem):
        partial = f"{path}.{os.getpid()}.partial"
        fs.pipe_file(partial, content)
        os.replace(partial, path)
    else:
        fs.pipe_file(path, content)


def exists(url: str) -> bool:
    fs, path = resolve(url)
    fs.invalidate_cache()
    return cast(bool, fs.exists(path))


def size(url: str) -> int | None:
    """Length in bytes, or None where there is nothing."""
    fs, path = resolve(url)
    fs.invalidate_cache()
    try:
        return cast(int, fs.info(path)["size"])
    except FileNotFoundError:
        return None


def remove(url: str) -> None:
    """Delete one file; it is fine when there is none."""
    fs, path = resolve(url)
    if fs.exists(path):
        fs.rm_file(path)


def matching(folder: str, pattern: str) -> list[str]:
    """Names in `folder` that match a glob pattern, sorted. Empty where the folder does not exist."""
    fs, path = resolve(folder)
    fs.invalidate_cache()
    return sorted(posixpath.basename(found) for found in fs.glob(f"{path.rstrip('/')}/{pattern}"))
