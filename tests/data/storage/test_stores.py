"""The same samples from every kind of store, and through a network that fails, stalls and cuts answers short."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.asyn import get_loop

from data import storage
from data.errors import Unreadable
from data.loading import reader
from data.loading.ranges import Sample
from data.loading.reader import Reader, Statistics
from data.loading.schedule import schedule
from data.order import MASKED, SampleOrder
from data.shards.index import Index, open_index
from data.storage import patience
from infra.local.stores import FaultyProxy, Server, file_server, gcs_server, reached_by, s3_server
from tests.paths import ROOT
from tests.tars import Fields, write_set

COUNTS = [150, 0, 200, 64, 90]
KINDS = ["gs", "s3", "http"]
ORDER = {"batch_size": 16, "lanes": 4, "block": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("set")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Fields]:
    """The fields of every sample, by id."""
    return write_set(str(folder), COUNTS)[1]


@pytest.fixture(scope="module")
def stores(folder: Path, expected: list[Fields]) -> Iterator[dict[str, Server]]:
    """The folder in each kind of store."""
    with ExitStack() as stack:
        servers = {
            "gs": stack.enter_context(gcs_server()),
            "s3": stack.enter_context(s3_server()),
            "http": stack.enter_context(file_server(folder)),
        }
        for kind in ("gs", "s3"):
            with reached_by(servers[kind]) as url:
                for path in folder.iterdir():
                    storage.write_atomic(f"{url}/{path.name}", path.read_bytes())
        yield servers


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short time limits, short waits between tries and short reads, so that there are many requests."""
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(reader, "READ_BYTES", 50_000)


def read_epoch(index: Index, **options: object) -> tuple[dict[int, Fields], Statistics]:
    """Every sample of an epoch, by id, as the reader gives them step by step."""
    order = SampleOrder(index, **ORDER)
    found: dict[int, Fields] = {}
    with Reader(index, order, range(16), 0, order.steps_per_epoch, **options) as source:
        for step in range(order.steps_per_epoch):
            ids = [number for number in order.batch(step) if number != MASKED]
            for number, sample in zip(ids, source.take(step, [(0, number) for number in ids]), strict=True):
                assert isinstance(sample, Sample)
                found[number] = sample.fields
        return found, source.statistics()


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_gives_what_was_written(stores, expected, folder, kind):
    with reached_by(stores[kind]) as url:
        found, statistics = read_epoch(open_index(url))
        assert found == dict(enumerate(expected))
        assert statistics.retries == 0
        assert storage.size(f"{url}/000000.tar") == (folder / "000000.tar").stat().st_size
        assert storage.size(f"{url}/nothing") is None
        assert storage.exists(f"{url}/index.json")
        assert not storage.exists(f"{url}/nothing")
        with storage.open_read(f"{url}/000002.tar", 100_000) as file:
            assert file.read() == (folder / "000002.tar").read_bytes()
        with pytest.raises(FileNotFoundError):
            storage.read_range(f"{url}/nothing", 0, 10)
        with pytest.raises(FileNotFoundError):
            storage.read(f"{url}/nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_about_the_end_of_an_object(stores, folder, expected, kind):
    content = (folder / "000003.tar").read_bytes()
    with reached_by(stores[kind]) as url:
        for begin, end in [(0, 10), (500, 70_000), (len(content) - 5, len(content) + 5), (len(content) - 5, 10**9)]:
            assert storage.read_range(f"{url}/000003.tar", begin, end) == content[begin:end]
        for begin in (len(content), len(content) + 1, 10**9):
            assert storage.read_range(f"{url}/000003.tar", begin, begin + 10) == b""


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_writing_to_a_bucket(stores, kind):
    with reached_by(stores[kind]) as url:
        place = f"{url}/written/new.txt"
        storage.write_atomic(place, b"old")
        assert storage.read(place) == b"old"
        storage.write_atomic(place, b"new and longer")
        assert storage.read(place) == b"new and longer"
        assert storage.size(place) == 14
        with storage.open_write(f"{url}/written/streamed.bin") as file:
            file.write(b"x" * 1000)
        assert storage.matching(f"{url}/written", "*") == ["new.txt", "streamed.bin"]
        storage.remove(place)
        storage.remove(place)
        assert storage.matching(f"{url}/written", "*") == ["streamed.bin"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("impatient")
def test_the_same_samples_through_a_bad_network(stores, expected, kind):
    """One request in ten fails, some stall for ever, some answers are cut short: the samples are the same."""
    with (
        FaultyProxy(stores[kind], seed=3, fail=0.1, stall=0.08, truncate=0.1, shorten=0.1) as proxy,
        reached_by(proxy.server) as url,
    ):
        index, retries = open_index(url), 0
        for _ in range(10):
            found, statistics = read_epoch(index)
            assert found == dict(enumerate(expected))
            retries += statistics.retries
            if min(proxy.counts[fate] for fate in ("fail", "stall", "truncate", "shorten")) > 0:
                break
        else:
            pytest.fail(f"not every trouble was made: {proxy.counts}")
        assert retries >= proxy.counts["stall"] + proxy.counts["shorten"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("impatient")
def test_retries_are_counted(stores, expected, kind):
    """The libraries have longer time limits: each stall is a retry of ours."""
    with reached_by(stores[kind]) as url:
        index = open_index(url)
    with FaultyProxy(stores[kind], seed=1, stall=0.2) as proxy, reached_by(proxy.server):
        index = replace(index, url=index.url.replace(stores[kind].endpoint, proxy.server.endpoint))
        found, statistics = read_epoch(index)
        assert found == dict(enumerate(expected))
        assert statistics.retries >= proxy.counts["stall"] > 0  # on a busy machine slow answers are retried, too
        order = SampleOrder(index, **ORDER)
        reads = list(schedule(index, order, range(16), 0, order.steps_per_epoch, reader.READ_BYTES))
        assert statistics.requests == statistics.retries + len(reads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_away_is_an_error_that_names_the_shard(stores, kind, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    with FaultyProxy(stores[kind]) as proxy, reached_by(proxy.server) as url:
        index = open_index(url)
        proxy.set(fail=1.0)
        with pytest.raises(Unreadable, match=rf"^{url}/00000\d\.tar: cannot be read \(.+\)$"):
            read_epoch(index)


@pytest.mark.usefixtures("impatient")
def test_stalled_requests_leave_nothing_behind(stores, monkeypatch):
    """Cancelled requests close their connections and tasks: no more are open after eighteen than after six."""
    monkeypatch.setattr(patience, "ATTEMPTS", 6)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.05)
    for kind in KINDS:
        monkeypatch.setattr(patience, "REQUEST_SECONDS", 5.0)
        with FaultyProxy(stores[kind]) as proxy, reached_by(proxy.server) as url:
            assert storage.read_range(f"{url}/000000.tar", 0, 3) != b""  # connected
            proxy.set(stall=1.0)
            monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.06)
            left = []
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    storage.read_range(f"{url}/000000.tar", 0, 1000)
                left.append(len(os.listdir("/proc/self/fd")) + len(asyncio.all_tasks(get_loop())))
            assert proxy.counts["stall"] >= 15
            assert max(left) - left[0] <= 2


PROGRAM = """
import hashlib, sys
from data import storage
from data.shards.index import open_index
index = open_index(sys.argv[1])
content = b"".join(storage.read_range(index.shard_url(n), 0, s.bytes) for n, s in enumerate(index.shards))
print(hashlib.sha256(content).hexdigest())
"""


def digest_by_another_process(server: Server) -> str:
    """SHA-256 of all shards of a store, read by a process that has only its URL and the variables."""
    command = [sys.executable, "-c", PROGRAM, server.url]
    environment = os.environ | server.environment
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def test_variables_alone_lead_another_process_there(stores, folder, expected):
    """Plain URLs: neither endpoints nor credentials are arguments. Over https the certificate is checked."""
    shards = sorted(folder.glob("*.tar"))
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()
    with file_server(folder, tls=True) as secure:
        assert secure.url.startswith("https://")
        with ThreadPoolExecutor() as pool:
            assert set(pool.map(digest_by_another_process, [stores["gs"], stores["s3"], secure])) == {whole}
