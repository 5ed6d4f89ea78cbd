"""Bytes by URL: local paths, gs://, s3://, https://, memory:// and every other protocol of fsspec.

Every function resolves its file system from the URL when it is called and keeps none: fsspec caches instances by
process and thread, and an object made before a fork (a gcsfs session, an event loop) does not survive it.

Every request has a time limit and is retried (patience.py). Names are literal (urls.py). On a local disk, what is read
must be a regular file: the open of a pipe would wait for its writer, and a device has no end.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.errors import DataError
from data.storage.patience import ShortRead, limit, limited, may_pass, patiently
from data.storage.urls import is_web, resolve

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ASKED_BYTES = 1 << 30  # of one range: before a longer one is read, the file's length is asked for


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn a back end's errors into one line about `url`. Each back end has its own for rights, names and networks.

    Raises:
        DataError: for all errors but FileNotFoundError, which passes: it means the same everywhere.
    """
    try:
        yield
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:
        raise DataError(f"{url}: cannot be opened ({describe(error)})") from error


def describe(error: BaseException) -> str:
    """An error on one line: its type, and the first line of its message."""
    reason = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def read(url: str) -> bytes:
    """The whole content. Raises the file system's own errors: FileNotFoundError, PermissionError, OSError ..."""
    fs, path = resolve(url)
    _check_regular(fs, path)

    def attempt() -> bytes:
        if not fs.async_impl:
            return cast(bytes, fs.cat_file(path))
        length = _length(fs, path) or 0
        content = cast(bytes, fs.cat_file(path, timeout=limit(length)))
        if len(content) < length:
            raise ShortRead(f"{len(content)} of {length} bytes came")
        return content

    return patiently(attempt)


def read_range(
    url: str, begin: int, end: int, *, attempts: int | None = None, on_retry: Callable[[], object] | None = None
) -> bytes:
    """Bytes begin .. end-1, in one request. Fewer only if the object ends earlier.

    Args:
        attempts: most tries. Default: ATTEMPTS.
        on_retry: called before each further try.

    Raises:
        FileNotFoundError, PermissionError, OSError, ...: the file system's own errors, after all tries.
    """
    fs, path = resolve(url)
    _check_regular(fs, path)

    def attempt() -> bytes:
        try:
            content = _range(fs, path, begin, end)
        except FileNotFoundError:
            raise
        except Exception as error:
            if not may_pass(error) and (length := _length(fs, path)) is not None and length <= begin:
                return b""  # for object stores a range that begins at or after the end is an error
            raise
        if len(content) < end - begin:
            length = _length(fs, path)
            if length is not None and begin + len(content) < length:
                raise ShortRead(f"{len(content)} of {end - begin} bytes came")
        return content

    return patiently(attempt, attempts=attempts, on_retry=on_retry)


def open_read(url: str, chunk: int = 1 << 20) -> IO[bytes]:
    """A file for reading, in requests of about `chunk` bytes."""
    fs, path = resolve(url)
    _check_regular(fs, path)
    if isinstance(fs, LocalFileSystem):
        return cast(IO[bytes], fs.open(path, "rb"))
    return io.BufferedReader(_Ranges(url), chunk)


def open_write(url: str) -> IO[bytes]:
    """A file for writing; missing folders are made. On object stores it appears when it is closed.

    Parts are sent while it is written. The file system retries failed parts by its own rules.
    """
    fs, path = resolve(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    return cast(IO[bytes], fs.open(path, "wb"))


def write_atomic(url: str, content: bytes) -> None:
    """Put `content` at `url`. A reader sees the old content or the new one, never a part.

    An object store's put is atomic. On a local disk the bytes go into another file, which then replaces the old one.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(fs._parent(path), exist_ok=True)
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()  # a longer name may be too long
        partial = os.path.join(fs._parent(path), f"{digest}.{os.getpid()}.partial")
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power failure can leave an empty file under this name
        os.replace(partial, path)
        return

    def attempt() -> None:
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, content, **limited(fs, len(content)))

    patiently(attempt)


def put_file(path: Path, url: str) -> None:
    """Move a local file to `url`; missing folders are made. On a local disk nothing is copied."""
    fs, there = resolve(url)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(fs._parent(there), exist_ok=True)
        fs.mv(str(path), there)
        return

    def attempt() -> None:
        fs.makedirs(fs._parent(there), exist_ok=True)
        fs.put_file(str(path), there, **limited(fs, path.stat().st_size))

    patiently(attempt)
    path.unlink()


def get_file(url: str, path: Path) -> None:
    """Copy the file at `url` to local disk. Raises the file system's own errors, such as FileNotFoundError."""
    fs, there = resolve(url)
    _check_regular(fs, there)

    def attempt() -> None:
        length = _length(fs, there) or 0
        fs.get_file(there, str(path), **limited(fs, length))
        if (got := path.stat().st_size) < length:
            raise ShortRead(f"{got} of {length} bytes came")

    patiently(attempt)


def exists(url: str) -> bool:
    """Whether a file or a folder exists there. Raises the file system's own errors if it cannot say."""
    fs, path = resolve(url)
    return patiently(lambda: _is_there(fs, path))


def is_folder(url: str) -> bool:
    """Whether a folder exists there. A web server does not say: False."""
    fs, path = resolve(url)
    if is_web(fs):
        return False
    try:
        return patiently(lambda: bool(_info(fs, path)["type"] == "directory"))
    except (FileNotFoundError, NotADirectoryError):
        return False


def size(url: str) -> int | None:
    """Length in bytes, or None if there is no file."""
    fs, path = resolve(url)
    try:
        _check_regular(fs, path, folders=True)
        return patiently(lambda: _length(fs, path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove(url: str) -> None:
    """Delete one file, if it exists."""
    fs, path = resolve(url)

    def attempt() -> None:
        if _is_there(fs, path):
            fs.rm_file(path, **limited(fs))

    with suppress(FileNotFoundError):  # an earlier try has deleted it, and its answer was lost
        patiently(attempt)


def _range(fs: fsspec.AbstractFileSystem, path: str, begin: int, end: int) -> bytes:
    """One request for bytes begin .. end-1."""
    if end - begin > ASKED_BYTES and (length := _length(fs, path)) is not None:
        end = min(end, max(begin, length))  # Python takes the memory for all bytes that are asked for, there or not
    if is_web(fs):
        from data.storage import web

        return web.read_range(fs, path, begin, end, limit(end - begin))
    return cast(bytes, fs.cat_file(path, start=begin, end=end, **limited(fs, end - begin)))


def _length(fs: fsspec.AbstractFileSystem, path: str) -> int | None:
    """Present length of an object; None if the server does not state it. Raises FileNotFoundError."""
    if is_web(fs):
        from data.storage import web

        return web.length(fs, path, limit(0))
    return cast(int | None, _info(fs, path)["size"])


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """What a store says about a file or a folder now. Raises FileNotFoundError."""
    fs.invalidate_cache()
    return cast(dict[str, Any], fs.info(path, **limited(fs)))


def _check_regular(fs: fsspec.AbstractFileSystem, path: str, folders: bool = False) -> None:
    """Check that a local path is a file, or a link to one. Other stores pass.

    Args:
        folders: let a folder pass, too.

    Raises:
        DataError: it is a pipe, a device or a socket.
        IsADirectoryError, FileNotFoundError, PermissionError, ...: the disk's own errors.
    """
    if not isinstance(fs, LocalFileSystem):
        return
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        if not folders:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    elif not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise DataError(f"{path}: is {kind}, not a file; remove it, or name a file")


def _is_there(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    try:
        _length(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class _Ranges(io.RawIOBase):
    """A file of an object store. Each read is a request of its own, so that it can be retried."""

    def __init__(self, url: str) -> None:
        length = size(url)
        if length is None:
            raise FileNotFoundError(url)
        self._url, self._length, self._position = url, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        end = min(self._position + len(view), self._length)
        content = read_range(self._url, self._position, end) if self._position < end else b""
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
