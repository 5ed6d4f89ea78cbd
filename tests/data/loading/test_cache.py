import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.loading import cache as cache_module
from data.loading.cache import Cache, ChecksumError
from data.shards.index import Shard
from tests.paths import ROOT

LENGTH = 300_000


class Store:
    """Contents by name, and the requests that were made for them."""

    def __init__(self, count: int, length: int = LENGTH, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.contents = [rng.randbytes(length) for _ in range(count)]
        self.shards = [
            Shard(f"{number:06d}.tar", 1, length, hashlib.sha256(content).hexdigest(), np.zeros(1, np.int64))
            for number, content in enumerate(self.contents)
        ]
        self.requests: list[tuple[int, int, int]] = []

    def download(self, number: int) -> Callable[[int, int], bytes]:
        def get(begin: int, end: int) -> bytes:
            self.requests.append((number, begin, end))
            return self.contents[number][begin:end]

        return get

    def read(self, cache: Cache, number: int, begin: int = 1000, end: int = 5000) -> bytes | None:
        return cache.read(self.shards[number], begin, end, self.download(number))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PIECE_BYTES", 64_000)


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_shard_comes_once_and_whole(tmp_path):
    store, cache = Store(1), Cache(str(tmp_path / "new" / "folder"), 10 * LENGTH)
    for begin, end in [(1000, 5000), (0, LENGTH), (LENGTH - 7, LENGTH), (64_000, 128_001)]:
        assert store.read(cache, 0, begin, end) == store.contents[0][begin:end]
    assert sorted(store.requests) == [(0, begin, min(begin + 64_000, LENGTH)) for begin in range(0, LENGTH, 64_000)]
    [entry] = (tmp_path / "new" / "folder").glob("*.tar")
    assert entry.name == f"{store.shards[0].sha256}.tar"
    assert cache.holds(store.shards[0])


def test_equal_names_of_different_sets_do_not_meet(tmp_path):
    one, two = Store(1, seed=1), Store(1, seed=2)
    cache = Cache(str(tmp_path), 10 * LENGTH)
    assert one.shards[0].url == two.shards[0].url
    for store in (one, two, one, two):
        assert store.read(cache, 0) == store.contents[0][1000:5000]


def test_the_shard_used_longest_ago_makes_room(tmp_path):
    store, cache = Store(5), Cache(str(tmp_path), 3 * LENGTH + 100)
    for number in (0, 1, 2, 0, 3, 0, 4):
        assert store.read(cache, number) is not None
        assert taken(tmp_path) <= 3 * LENGTH
        time.sleep(0.01)  # so that the times of use differ on any file system
    assert [cache.holds(shard) for shard in store.shards] == [True, False, False, True, True]
    assert [number for number, begin, _ in store.requests if begin == 0] == [0, 1, 2, 3, 4]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "holiday.tar").write_bytes(bytes(10 * LENGTH))
    store, cache = Store(3), Cache(str(tmp_path), LENGTH)
    for number in range(3):
        assert store.read(cache, number) is not None
    assert (tmp_path / "holiday.tar").stat().st_size == 10 * LENGTH


def test_what_does_not_fit_is_left_to_its_store(tmp_path):
    store, cache = Store(1), Cache(str(tmp_path), LENGTH - 1)
    assert store.read(cache, 0) is None
    assert store.requests == []


def test_an_open_shard_can_be_evicted(tmp_path):
    """A reader that has it open can read it to its end."""
    store, cache = Store(2), Cache(str(tmp_path), LENGTH)
    store.read(cache, 0)
    with (tmp_path / f"{store.shards[0].sha256}.tar").open("rb") as file:
        store.read(cache, 1)
        assert not cache.holds(store.shards[0])
        assert file.read() == store.contents[0]


def test_nothing_enters_under_a_checksum_that_it_has_not(tmp_path):
    """After a flipped bit, one more download. If that is wrong, too: an error, and no further download."""
    store, cache = Store(2), Cache(str(tmp_path), 10 * LENGTH)
    right = store.contents[0]
    store.contents[0] = right[:100_000] + bytes([right[100_000] ^ 4]) + right[100_001:]
    for _ in range(2):
        with pytest.raises(ChecksumError, match=rf"is [0-9a-f]{{64}}, the index says {store.shards[0].sha256}"):
            store.read(cache, 0)
        assert sum(begin == 0 for _, begin, _ in store.requests) == 2
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob("*.partial"))

    def once_wrong(begin: int, end: int) -> bytes:
        content = store.download(1)(begin, end)
        return bytes(len(content)) if sum(begin == 0 for number, begin, _ in store.requests if number) == 1 else content

    assert cache.read(store.shards[1], 10, 20, once_wrong) == store.contents[1][10:20]


def test_a_shard_that_is_cut_short_does_not_enter(tmp_path):
    store, cache = Store(1), Cache(str(tmp_path), 10 * LENGTH)
    store.contents[0] = store.contents[0][:100_000]
    for _ in range(2):
        assert store.read(cache, 0) is None
    assert sum(begin == 0 for _, begin, _ in store.requests) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_errors_of_the_store_pass_and_leave_nothing(tmp_path):
    store, cache = Store(1), Cache(str(tmp_path), 10 * LENGTH)

    def broken(begin: int, end: int) -> bytes:
        if begin:
            raise OSError("the store is away")
        return bytes(end)

    with pytest.raises(OSError, match="the store is away"):
        cache.read(store.shards[0], 0, 10, broken)
    assert not list(tmp_path.glob("*.partial"))
    assert store.read(cache, 0) == store.contents[0][1000:5000]


def test_a_full_disk_is_said_once_and_the_store_is_read(tmp_path):
    """A file system of 1 MB that really is full."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        store, cache = Store(6), Cache(str(tmp_path), 100 * LENGTH)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [store.read(cache, number) for number in range(6)]
        assert found[:3] == [content[1000:5000] for content in store.contents[:3]]
        assert found[3:] == [None] * 3
        assert [str(warning.message) for warning in caught] == [
            f"{tmp_path}: shards are read from their store, not cached: No space left on device"
        ]
        assert not list(tmp_path.glob("*.partial"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache: not usable as a cache \(Not a directory\)"):
        Cache(str(tmp_path / "file" / "cache"), 1)


def test_many_threads_and_little_room(tmp_path):
    """While shards are evicted, bytes are right or left to the store, and the size is kept. Nothing is left over."""
    store, cache = Store(8), Cache(str(tmp_path), 3 * LENGTH)
    wrong, most, done = [], [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            with cache._guarded(), suppress(FileNotFoundError):  # else the sum would be over files of different times
                most[0] = max(most[0], taken(tmp_path))

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            number, begin = rng.randrange(8), rng.randrange(LENGTH)
            found = store.read(cache, number, begin, begin + 100)
            if found not in (None, store.contents[number][begin : begin + 100]):
                wrong.append((number, begin))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    done.set()
    watcher.join()
    assert not wrong
    assert 0 < most[0] <= 3 * LENGTH
    assert not list(tmp_path.glob("*.partial"))


PROGRAM = """
import hashlib, random, sys, time
import numpy as np
from data.loading.cache import Cache
from data.shards.index import Shard
folder, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
content = random.Random(0).randbytes(300_000)
shard = Shard("0.tar", 1, 300_000, hashlib.sha256(content).hexdigest(), np.zeros(1, np.int64))
def download(begin, end):
    with open(log, "a") as file:
        file.write(f"{begin}\\n")
    time.sleep(pause)
    return content[begin:end]
found = Cache(folder, 1_000_000).read(shard, 100, 200, download)
assert found == content[100:200]
"""


def start(folder: Path, log: Path, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, folder, log, str(pause)], cwd=ROOT)


def wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until `process` has requested a piece."""
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)


def test_processes_share_and_survive_each_other(tmp_path):
    """One is killed in its download. Then two need the same shard: one downloads it and the other waits."""
    folder, log = tmp_path / "cache", tmp_path / "log"
    killed = start(folder, log, 100)
    wait_for(log, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(list(folder.glob("*.partial"))) == 1
    log.unlink()
    workers = [start(folder, log, 0.2) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == [0]  # a piece is 4 MiB there: one request
    assert len(list(folder.glob("*.tar"))) == 1
    assert not list(folder.glob("*.partial"))


def test_leftovers_of_the_killed_are_removed_and_downloads_under_way_are_not(tmp_path):
    log = tmp_path / "log"
    other = start(tmp_path, log, 1.0)
    wait_for(log, other)
    [under_way] = tmp_path.glob("*.partial")
    left = tmp_path / f"{'0' * 64}.partial"
    left.write_bytes(bytes(1000))
    Cache(str(tmp_path), LENGTH)
    assert under_way.exists()
    assert not left.exists()
    assert other.wait(60) == 0


def test_an_entry_that_is_torn_is_replaced(tmp_path):
    """Cut short, empty or too long: with a warning that names the file, and the right bytes."""
    store, cache = Store(1), Cache(str(tmp_path), 10 * LENGTH)
    store.read(cache, 0)
    entry = tmp_path / f"{store.shards[0].sha256}.tar"
    for content in (store.contents[0][: LENGTH // 2], b"", store.contents[0] + b"x"):
        entry.write_bytes(content)
        with pytest.warns(UserWarning, match=rf"damaged.*{entry.name} has {len(content):,} bytes"):
            assert store.read(Cache(str(tmp_path), 10 * LENGTH), 0) == store.contents[0][1000:5000]
        assert entry.read_bytes() == store.contents[0]


@pytest.mark.parametrize("place", ["", "/proc/self/mem"], ids=["a folder", "a bad sector"])
def test_what_is_in_the_place_of_an_entry_stops_nothing(tmp_path, place):
    """Nor does it stop the eviction that makes room for another shard, nor the next start."""
    store = Store(2)
    entry, partial = (tmp_path / f"{store.shards[0].sha256}.{suffix}" for suffix in ("tar", "partial"))
    for path in (entry, partial):
        if place:
            path.symlink_to(place)
        else:
            path.mkdir()
            (path / "precious").write_bytes(b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = Cache(str(tmp_path), LENGTH)
        for number in (0, 1, 0, 1):
            content = store.read(cache, number) or store.download(number)(1000, 5000)
            assert content == store.contents[number][1000:5000]
    assert any(entry.name in str(warning.message) for warning in caught)
    assert place or (entry / "precious").exists()


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(DataError, match=rf"not usable as a cache \({tmp_path}/\.lock: Is a directory\)"):
        Cache(str(tmp_path), LENGTH)
