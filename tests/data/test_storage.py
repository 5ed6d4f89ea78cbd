"""Reaching a server, or not, before anything waits for it."""

import socket

import pytest

from data import storage
from data.errors import DataError


def test_a_bucket_whose_server_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.getsockname()[1]}")
        storage.check_reachable("gs://bucket/x")


def test_a_bucket_whose_server_is_away_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with pytest.raises(DataError, match=r"gs://bucket/x: cannot reach 127\.0\.0\.1 \(Connection refused\)"):
        storage.check_reachable("gs://bucket/x")


def test_other_urls_pass() -> None:
    for url in ("/local", "memory://x", "s3://bucket"):
        storage.check_reachable(url)
