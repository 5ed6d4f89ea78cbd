import gc
import threading
import time
import tracemalloc
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import storage
from data.errors import Cause, DataError
from data.loading import budget, reader, schedule
from data.loading.budget import window_bytes
from data.loading.cache import Cache
from data.loading.ranges import Sample, UnreadableSample
from data.loading.reader import Reader, ReaderClosed
from data.order import Order, SampleOrder
from data.shards.index import Index, open_index
from data.sources.digits import pack_digits
from data.storage import patience
from tests.data.loading.helpers import places
from tests.tars import write_set

MB = 1 << 20


class LoggedFileSystem(MemoryFileSystem):
    """The memory file system, with a log of its ranged reads, and a gate that can hold them back."""

    protocol = "logged"
    store: dict = {}  # noqa: RUF012 - fsspec's way to share the content between instances
    pseudo_dirs = [""]  # noqa: RUF012
    log: list[tuple[str, int, int]] = []  # noqa: RUF012
    gate = threading.Event()
    stalled = ""  # reads of a shard with this name wait for `release`
    release = threading.Event()
    failing = ""  # reads of a shard with this name fail

    def cat_file(self, path, start=None, end=None, **options):
        if path.endswith(".tar"):
            type(self).gate.wait(30)
            type(self).log.append((path, start, end))
            if self.stalled and path.endswith(self.stalled):
                type(self).release.wait(30)
            if self.failing and path.endswith(self.failing):
                raise ConnectionError("reset by peer")
        return super().cat_file(path, start, end, **options)


fsspec.register_implementation("logged", LoggedFileSystem)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """25 MB of samples of 15 to 25 kB."""
    return write_set(str(tmp_path_factory.mktemp("large")), [320] * 4, sizes=(15_000, 25_000))[0]


@pytest.fixture(autouse=True)
def no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoggedFileSystem, "stalled", "")
    monkeypatch.setattr(LoggedFileSystem, "failing", "")


@pytest.fixture
def logged() -> Index:
    """The packed digits on a file system that logs."""
    url = f"logged://{uuid.uuid4()}"
    pack_digits(url)
    LoggedFileSystem.log.clear()
    LoggedFileSystem.gate.set()
    return open_index(f"{url}/train")


def take_all(source: Reader, order: Order, steps: range, slots: range) -> dict[int, list[Sample | UnreadableSample]]:
    return {step: source.take(step, places(order, step, slots)) for step in steps}


def test_reads_are_few_and_long(logged):
    """One worker, one epoch of 1,442 samples: a request a shard, and one or two more for the first step."""
    order = SampleOrder(logged, batch_size=128)
    with Reader(logged, order, range(128), 0, order.steps_per_epoch) as source:
        taken = take_all(source, order, range(order.steps_per_epoch), range(128))
    keys = [sample.key for samples in taken.values() for sample in samples]
    assert len(set(keys)) == len(keys) == logged.num_samples
    assert len(LoggedFileSystem.log) <= len(logged.shards) + 2
    assert sum(end - begin for _, begin, end in LoggedFileSystem.log) <= logged.num_bytes + 2 * 64 * 2048


def test_a_worker_reads_only_the_neighbourhood_of_its_lanes(logged):
    """A quarter of the slots needs a quarter of the bytes, and the edges of its stretch of the line."""
    order = SampleOrder(logged, batch_size=128, lanes=4, block=128)
    with Reader(logged, order, range(32, 64), 0, order.steps_per_epoch) as source:
        take_all(source, order, range(order.steps_per_epoch), range(32, 64))
    read = sum(end - begin for _, begin, end in LoggedFileSystem.log)
    assert read < 0.25 * logged.num_bytes + len(LoggedFileSystem.log) * 64 * 2048


def test_read_ahead_keeps_to_the_memory(large, monkeypatch):
    """Only step 0 is requested: its samples are fetched, and those that fit into the budget."""
    monkeypatch.setattr(budget, "LEAST_READ_BYTES", MB // 8)
    order = SampleOrder(large, batch_size=8, lanes=1, block=64, seed=2)
    memory = window_bytes(large, order, range(8)) + 4 * MB
    with Reader(large, order, range(8), 0, order.steps_per_epoch, memory=memory) as source:
        source.take(0, places(order, 0, range(8)))
        time.sleep(0.3)  # enough time to read everything
        assert memory / 2 < source.statistics().bytes_read < 2 * memory < large.num_bytes
        taken = take_all(source, order, range(1, order.steps_per_epoch), range(8))
    assert sum(map(len, taken.values())) == large.num_samples - 8


@pytest.mark.parametrize("spare", [0, 32 * MB])
def test_the_budget_holds(large, spare):
    """By Python's own count of allocated bytes, with and without samples being taken."""
    order = SampleOrder(large, batch_size=16, lanes=8, block=64)
    memory = window_bytes(large, order, range(16)) + spare
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with Reader(large, order, range(16), 0, order.steps_per_epoch, memory=memory) as source:
            for step in range(order.steps_per_epoch):
                source.take(step, places(order, step, range(16)))
                if step % 20 == 0:
                    time.sleep(0.05)  # time to read ahead
        held = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert held <= memory
    assert held > min(memory, large.num_bytes) / 4


def test_a_stalled_request_delays_only_its_own_samples(tmp_path, monkeypatch):
    """One read does not return; the samples of all others come."""
    index, fields = write_set(f"logged://{uuid.uuid4()}", [64] * 6)
    order = SampleOrder(index, batch_size=64, shuffle=False)
    LoggedFileSystem.gate.set()
    monkeypatch.setattr(LoggedFileSystem, "stalled", "000001.tar")
    LoggedFileSystem.release.clear()
    with Reader(index, order, range(64), 0, 6) as source:
        for step in (0, 2, 3, 4, 5):
            assert [sample.fields for sample in source.take(step, places(order, step, range(64)))] == [
                fields[number] for number in order.batch(step)
            ]
        LoggedFileSystem.release.set()
        assert len(source.take(1, places(order, 1, range(64)))) == 64


def test_closing_wakes_who_waits(logged):
    order = SampleOrder(logged, batch_size=128)
    LoggedFileSystem.gate.clear()  # the store does not answer
    source = Reader(logged, order, range(128), 0, 10)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            source.take(0, places(order, 0, range(128)))
        except ReaderClosed as closed:
            outcome.append(closed)

    waiting = threading.Thread(target=wait)
    waiting.start()
    source.close()
    waiting.join(10)
    LoggedFileSystem.gate.set()
    assert len(outcome) == 1


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if kind == "corrupt":
        path.write_bytes(b"<html>" * 200_000)
    if kind == "shifted":
        path.write_bytes(content[:512] + bytes(1024) + content[512:])
    if kind == "folder":
        path.mkdir()


DAMAGES = {
    "missing": "there is no such shard",
    "corrupt": "no tar header at byte 0",
    "shifted": "no tar header|samples instead of",
    "folder": "cannot be read",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_shard_is_an_error_that_names_it(tmp_path, kind):
    index, _ = write_set(str(tmp_path), [100] * 4)
    damage(tmp_path / "000002.tar", kind)
    order = SampleOrder(index, batch_size=32)
    with Reader(index, order, range(32), 0, order.steps_per_epoch) as source:
        with pytest.raises(DataError, match=DAMAGES[kind]) as raised:
            take_all(source, order, range(order.steps_per_epoch), range(32))
        assert str(raised.value).startswith(f"{tmp_path}/000002.tar: ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_shard_is_masked_if_the_job_says_so(tmp_path, kind):
    """Exactly its samples are unreadable; all others are right."""
    index, fields = write_set(str(tmp_path), [100] * 4)
    damage(tmp_path / "000002.tar", kind)
    order = SampleOrder(index, batch_size=32)
    with Reader(index, order, range(32), 0, order.steps_per_epoch, mask_unreadable=True) as source:
        for step in range(order.steps_per_epoch):
            asked = places(order, step, range(32))
            for (_, number), sample in zip(asked, source.take(step, asked), strict=True):
                if 200 <= number < 300 and (kind != "shifted" or isinstance(sample, UnreadableSample)):
                    assert sample == UnreadableSample(f"{tmp_path}/000002.tar", Cause.UNREADABLE)
                else:
                    assert sample.fields == fields[number]
        assert source.statistics().unreadable == 1


def test_a_shard_cut_short_loses_its_end(tmp_path):
    """Also without `mask_unreadable`. The samples of other shards and those before the cut are all there."""
    index, fields = write_set(str(tmp_path), [200] * 3)
    path = tmp_path / "000001.tar"
    path.write_bytes(path.read_bytes()[: int(index.shards[1].offsets[2]) + 700])
    order = SampleOrder(index, batch_size=50)
    lost = set()
    with Reader(index, order, range(50), 0, order.steps_per_epoch) as source:
        for step in range(order.steps_per_epoch):
            asked = places(order, step, range(50))
            for (_, number), sample in zip(asked, source.take(step, asked), strict=True):
                if isinstance(sample, UnreadableSample):
                    assert sample == UnreadableSample(str(path), Cause.CUT_SHORT)
                    lost.add(number)
                else:
                    assert sample.fields == fields[number]
    assert lost == set(range(200 + 128, 400))


def test_a_shard_that_failed_once_is_not_tried_at_length_again(monkeypatch):
    """Eight tries for its first read that fails, one for each later read."""
    index, _ = write_set(f"logged://{uuid.uuid4()}", [64 * 6, 64])
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(budget, "FETCH_THREADS", 1)
    monkeypatch.setattr(reader, "READ_BYTES", 1000)
    LoggedFileSystem.gate.set()
    monkeypatch.setattr(LoggedFileSystem, "failing", "000000.tar")
    order = SampleOrder(index, batch_size=64, shuffle=False)
    with Reader(index, order, range(64), 0, 7, mask_unreadable=True) as source:
        taken = take_all(source, order, range(7), range(64))
        assert [isinstance(taken[step][0], UnreadableSample) for step in range(7)] == [True] * 6 + [False]
        statistics = source.statistics()
    assert statistics.unreadable == 1
    assert statistics.retries == patience.ATTEMPTS - 1
    assert statistics.requests == patience.ATTEMPTS + 5 + 1


def test_statistics_add_up(tmp_path):
    index, fields = write_set(str(tmp_path), [200] * 3)
    order = SampleOrder(index, batch_size=50)
    with Reader(index, order, range(50), 0, order.steps_per_epoch) as source:
        take_all(source, order, range(order.steps_per_epoch), range(50))
        statistics = source.statistics()
    used = sum(len(content) for sample in fields for content in sample.values())
    assert statistics.bytes_used == used
    assert used < statistics.bytes_read <= index.num_bytes
    assert statistics.requests >= 3
    assert (statistics.retries, statistics.unreadable, statistics.cache_hits, statistics.cache_misses) == (0, 0, 0, 0)


def test_reading_through_a_cache(tmp_path):
    """Each shard is downloaded once; the first steps read from the store. The next reader needs no store."""
    index, fields = write_set(f"memory://{uuid.uuid4()}", [640] * 6)
    cache = Cache(str(tmp_path), 100 * MB)
    order = SampleOrder(index, batch_size=40, lanes=2, block=128)
    steps = range(2 * order.steps_per_epoch)
    for again in (False, True):
        with Reader(index, order, range(40), steps.start, steps.stop, cache=cache) as source:
            for step in steps:
                asked = places(order, step, range(40))
                for (_, number), sample in zip(asked, source.take(step, asked), strict=True):
                    assert sample.fields == fields[number]
            statistics = source.statistics()
        if again:
            assert (statistics.requests, statistics.cache_misses) == (0, 0)
        else:
            assert index.num_bytes <= statistics.bytes_read < 2 * index.num_bytes
        assert statistics.cache_hits > 0
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) == index.num_bytes


def test_a_cached_shard_that_rots_is_fetched_again(tmp_path):
    index, fields = write_set(f"memory://{uuid.uuid4()}", [64] * 3)
    cache = Cache(str(tmp_path), 100 * MB)
    order = SampleOrder(index, batch_size=64, shuffle=False)
    for shard in index.shards:
        (tmp_path / f"{shard.sha256}.tar").write_bytes(bytes(shard.bytes))
    with Reader(index, order, range(64), 0, 3, cache=cache) as source:
        taken = take_all(source, order, range(3), range(64))
        assert source.statistics().retries == 3
    assert [sample.fields for step in range(3) for sample in taken[step]] == fields


def test_a_shard_with_another_checksum_is_unreadable(tmp_path, monkeypatch):
    """Its tar is sound, but is not the one that was indexed. That is found when it enters the cache."""
    monkeypatch.setattr(schedule, "FIRST_STEPS", 0)
    url = f"memory://{uuid.uuid4()}"
    index, fields = write_set(url, [64] * 3)
    content = bytearray(storage.read(f"{url}/000001.tar"))
    content[600] ^= 1  # in the first image
    storage.write_atomic(f"{url}/000001.tar", bytes(content))
    order = SampleOrder(index, batch_size=64, shuffle=False)
    cache = Cache(str(tmp_path), 100 * MB)
    with (
        Reader(index, order, range(64), 0, 3, cache=cache) as source,
        pytest.raises(DataError, match=rf"^{url}/000001\.tar: not what was indexed: its SHA-256 is [0-9a-f]{{64}}"),
    ):
        take_all(source, order, range(3), range(64))
    with Reader(index, order, range(64), 0, 3, cache=cache, mask_unreadable=True) as source:
        taken = take_all(source, order, range(3), range(64))
    assert taken[1] == [UnreadableSample(f"{url}/000001.tar", Cause.UNREADABLE)] * 64
    assert [sample.fields for step in (0, 2) for sample in taken[step]] == fields[:64] + fields[128:]
