"""Whole shards on a local disk, shared by the workers of a node.

    first read of a shard  ──>  reserve room, evicting  ──>  download beside  ──>  SHA-256 as indexed?  ──>  rename

An entry's name is the checksum in the index. So shards with equal names in different folders are different entries, and
so is a shard that was packed again. A shard enters only if it has that checksum.

Workers agree through the file system alone, by advisory locks that the kernel releases when their process dies:

- The process that downloads a shard locks `CHECKSUM.partial`; others that need the same shard wait for that lock. A
  partial file without a lock was left by a killed process, and the next cache in the folder removes it.
- `.lock` guards the sum of sizes. A download reserves its room, the shard's whole length, before it begins.
- The entries used longest ago are evicted. A reader of such an entry is not disturbed: on Linux and macOS an open file
  stays readable without its name.

A shard larger than the cache is read from its store, and so is every new shard if the disk is full.
"""

import fcntl
import hashlib
import os
import re
import stat
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from data import storage
from data.errors import DataError
from data.shards.index import Shard

STREAMS = 4  # requests of one download at a time
PIECE_BYTES = 4 << 20
DOWNLOAD_BYTES = 2 * STREAMS * PIECE_BYTES  # memory of one download: the pieces, and their copies
TRIES = 2  # downloads of a shard whose checksum is wrong
CUT_SHORT = "cut short"
DAMAGED = "a cached shard is damaged and is read from its store again"
OURS = re.compile(r"[0-9a-f]{64}\.(tar|partial)")

Download = Callable[[int, int], bytes]  # bytes begin .. end-1 of a shard from its store


class ChecksumError(DataError):
    """Every download was as long as the shard, but had another checksum than the index."""


class _NoRoom(Exception):
    """The disk is full, or other downloads take the whole cache."""


class Cache:
    """A folder of shards with at most `size` bytes together. Threads and processes may share it.

    Args:
        folder: on a local disk; made if it is missing. Other files in it are not touched.
        size: most bytes of all shards in the folder, also those of other processes.

    Raises:
        DataError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str, size: int) -> None:
        self._folder, self._size = Path(storage.absolute(folder)), size
        self._refused: dict[str, str] = {}  # by checksum: why a shard cannot enter; it is not downloaded again
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        except (OSError, _NoRoom) as error:
            reason = str(error) if isinstance(error, _NoRoom) else error.strerror
            raise DataError(f"{folder}: not usable as a cache ({reason})") from error

    def holds(self, shard: Shard) -> bool:
        """Whether the whole shard is here."""
        return self._entry(shard).exists()

    def takes(self, shard: Shard) -> bool:
        """Whether the shard may enter: it has a checksum, fits into the cache, and was not refused before."""
        return bool(shard.sha256) and shard.bytes <= self._size and shard.sha256 not in self._refused

    def read(self, shard: Shard, begin: int, end: int, download: Download) -> bytes | None:
        """Bytes begin .. end-1 of a shard. If it is not here, it enters first.

        Args:
            download: returns any range of the shard from its store, fewer bytes if the stored shard ends earlier.

        Returns:
            None for a shard that cannot enter: too long, shorter in the store than in the index, or no room.

        Raises:
            ChecksumError: the store holds another content.
            The errors of `download`, of any type.
        """
        if (content := self._read_entry(shard, begin, end)) is not None:
            return content
        if (reason := self._refused.get(shard.sha256, CUT_SHORT)) != CUT_SHORT:
            raise ChecksumError(reason)
        if not self.takes(shard) or not self._enter(shard, download):
            return None
        return self._read_entry(shard, begin, end)

    def drop(self, shard: Shard) -> None:
        """Remove a shard whose copy here is damaged."""
        with suppress(OSError):  # it is read from its store
            self._entry(shard).unlink(missing_ok=True)

    def _entry(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _read_entry(self, shard: Shard, begin: int, end: int) -> bytes | None:
        path = self._entry(shard)
        try:
            with path.open("rb", buffering=0) as file:
                if (size := os.fstat(file.fileno()).st_size) != shard.bytes:  # whole when it entered
                    self._warn(DAMAGED, f"{path.name} has {size:,} bytes instead of {shard.bytes:,}")
                    self.drop(shard)
                    return None
                with suppress(PermissionError):  # another user's
                    os.utime(file.fileno())  # note the use: mount options may switch access times off
                file.seek(begin)
                return file.read(end - begin)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(DAMAGED, f"{path.name} cannot be read ({error.strerror})")
            self.drop(shard)
            return None

    def _enter(self, shard: Shard, download: Download) -> bool:
        """Download a shard into the cache, or wait until another worker has. False if it cannot be kept."""
        try:
            with self._claimed(shard) as partial:
                if partial is None:
                    return True
                for _ in range(TRIES):
                    self._make_room(partial, shard.bytes)
                    length, checksum = _copy(download, shard.bytes, partial)
                    if length < shard.bytes:
                        self._refused[shard.sha256] = CUT_SHORT
                        return False
                    if checksum == shard.sha256:
                        with self._guarded():  # so that a sum of sizes counts it once
                            partial.rename(self._entry(shard))
                        return True
                reason = f"its SHA-256 is {checksum}, the index says {shard.sha256}"
                self._refused[shard.sha256] = reason
                raise ChecksumError(reason)
        except _NoRoom as error:
            self._warn("shards are read from their store, not cached", str(error))
            return False

    @contextmanager
    def _claimed(self, shard: Shard) -> Iterator[Path | None]:
        """The shard's partial file, locked, to fill and rename. Removed at the end. None: the shard is here.

        Waits while another thread or process has it.
        """
        path = self._folder / f"{shard.sha256}.partial"
        while True:
            with _local():
                file = path.open("ab")
            with file:
                with _local():
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file.fileno(), path):
                    continue  # its last owner has renamed or removed it
                try:
                    yield None if self.holds(shard) else path
                finally:
                    if _is_at(file.fileno(), path):  # after the rename, the name may belong to another download
                        path.unlink()
                return

    def _make_room(self, partial: Path, needed: int) -> None:
        """Evict until `needed` more bytes fit, and reserve them."""
        with self._guarded():
            others = [(path, status) for path, status in self._files() if path != partial]
            excess = sum(status.st_size for _, status in others) + needed - self._size
            for path, status in sorted(others, key=lambda other: other[1].st_mtime_ns):
                if excess > 0 and path.suffix == ".tar":
                    path.unlink(missing_ok=True)
                    excess -= status.st_size
            if excess > 0:
                raise _NoRoom(f"downloads under way take all of its {self._size} bytes")
            with _local():
                os.truncate(partial, needed)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """The shards here, whole or partial. Only files: a folder with such a name is not ours."""
        found = []
        for path in self._folder.iterdir():
            if OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another process has just removed it
                    found.append((path, path.lstat()))
        return [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]

    def _remove_leftovers(self) -> None:
        """Remove the partial files of processes that have ended."""
        with self._guarded():
            for path, _ in self._files():
                if path.suffix == ".partial":
                    with suppress(FileNotFoundError, PermissionError), path.open("rb") as file:  # another user's stays
                        try:
                            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        except BlockingIOError:
                            continue  # being downloaded
                        if _is_at(file.fileno(), path):  # else its download ended, and the name belongs to the next one
                            path.unlink()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Hold the folder's lock against all processes and threads."""
        with _local():
            file = (self._folder / ".lock").open("ab")
        with file:
            with _local():
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _warn(self, kind: str, reason: str) -> None:
        """Warn once of each kind."""
        with self._lock:
            if kind not in self._warned:
                warnings.warn(f"{self._folder}: {kind}: {reason}", stacklevel=2)
            self._warned.add(kind)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that `path` names now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _local() -> Iterator[None]:
    """Turns errors of the cache's own files into _NoRoom; errors of the store pass through."""
    try:
        yield
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        raise _NoRoom(f"{place}{error.strerror or error}") from error


def _copy(download: Download, length: int, path: Path) -> tuple[int, str]:
    """Fill a file with a shard of `length` bytes. Returns (bytes that came, their SHA-256)."""
    digest, written = hashlib.sha256(), 0
    with path.open("r+b", buffering=0) as file:
        for piece in _pieces(download, length):
            digest.update(piece)
            view = memoryview(piece)
            while view:
                with _local():
                    view = view[file.write(view) :]
            written += len(piece)
        with _local():
            os.fsync(file.fileno())  # else after a power failure the name may stand for zeros
    return written, digest.hexdigest()


def _pieces(download: Download, length: int) -> Iterator[bytes]:
    """Bytes 0 .. length-1 in order, by several requests at a time. Ends after the first short piece."""
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="data-cache") as pool:
        begins = iter(range(0, length, PIECE_BYTES))
        coming: deque[tuple[int, Future[bytes]]] = deque()

        def ask() -> None:
            if (begin := next(begins, None)) is not None:
                end = min(begin + PIECE_BYTES, length)
                coming.append((end - begin, pool.submit(download, begin, end)))

        for _ in range(STREAMS):
            ask()
        try:
            while coming:
                asked, future = coming.popleft()
                piece = future.result()
                yield piece
                if len(piece) < asked:
                    return
                ask()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
