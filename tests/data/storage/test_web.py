"""Ranges of files on real web servers, with and without ranges of their own."""

import random
from pathlib import Path

import pytest

from data import storage
from data.storage import patience
from infra.local.stores import FaultyProxy, file_server

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shard.tar").write_bytes(CONTENT)
    return tmp_path


@pytest.mark.parametrize("ranges", [True, False])
def test_a_range_is_those_bytes_from_every_server(folder, ranges):
    """A server without ranges sends the whole file, which is not the range."""
    with file_server(folder, ranges=ranges) as server:
        url = f"{server.url}/shard.tar"
        assert storage.size(url) == len(CONTENT)
        for begin, end in [(0, 10), (5, 6), (1 << 20, (1 << 20) + 5), (700_000, 2_500_000), (2_999_990, 4_000_000)]:
            assert storage.read_range(url, begin, end) == CONTENT[begin:end]
        assert storage.read_range(url, 3_000_000, 3_000_010) == b""
        assert storage.read(url) == CONTENT
        with pytest.raises(FileNotFoundError):
            storage.read_range(f"{server.url}/nothing", 0, 10)


def test_a_folder_is_listed(folder):
    (folder / "index.json").write_text("{}")
    with file_server(folder) as server:
        assert storage.matching(server.url, "*.tar") == ["shard.tar"]


def test_a_failing_server_is_not_a_missing_file(folder, monkeypatch):
    """For fsspec's own request of a length it is one."""
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    with file_server(folder) as server, FaultyProxy(server, fail=1.0) as proxy:
        with pytest.raises(Exception, match="503"):
            storage.size(f"{proxy.server.url}/shard.tar")
        with pytest.raises(Exception, match="503"):
            storage.exists(f"{proxy.server.url}/shard.tar")


def test_a_slow_server_without_ranges_is_waited_for(folder, monkeypatch):
    """It takes longer than the time limit of the range, but bytes keep coming."""
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    with file_server(folder, ranges=False, rate=4e6) as server:
        assert storage.read_range(f"{server.url}/shard.tar", 2_900_000, 2_900_010) == CONTENT[2_900_000:2_900_010]
