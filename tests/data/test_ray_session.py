"""The parts that need no cluster; test_pack.py runs on a real one."""

import os
import socket

import pytest

from data import ray_session
from data.ray_session import cluster_is_named, session, settle_authentication


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """No cluster on this machine, and a home of its own."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes what the code sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_session, "CURRENT_CLUSTER", tmp_path / "cluster")


def test_one_worker_is_this_process():
    with session(1) as runner:
        assert list(runner(pow, [(2, 3), (3, 2)])) == [8, 9]
        assert list(runner(os.getpid, [()])) == [os.getpid()]


def test_private_clusters_get_a_token_of_their_own():
    settle_authentication()
    first = os.environ.pop("RAY_AUTH_TOKEN")
    assert (os.environ.pop("RAY_AUTH_MODE"), len(first)) == ("token", 64)
    settle_authentication()
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_a_named_cluster_gets_the_token_of_this_home(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    settle_authentication()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    settle_authentication()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_what_is_said_already_stays(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settle_authentication()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_which_clusters_there_are(monkeypatch, tmp_path):
    assert not cluster_is_named()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "cluster").write_text(address)
        assert cluster_is_named()
        monkeypatch.setenv("RAY_ADDRESS", "local")  # Ray's word for a new private cluster
        assert not cluster_is_named()
        monkeypatch.delenv("RAY_ADDRESS")
    assert not cluster_is_named(), "what a killed cluster left"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_is_named(), "a named cluster is joined, or it is an error"


@pytest.mark.parametrize(
    "content", ["", "nonsense", "127.0.0.1:", "127.0.0.1:99999999", "\0:1", "no.such.host.invalid:1"]
)
def test_a_damaged_address_is_no_cluster(tmp_path, content):
    (tmp_path / "cluster").write_text(content)
    assert not cluster_is_named()


def test_after_a_killed_cluster_a_private_one_still_gets_its_token(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        (tmp_path / "cluster").write_text(f"127.0.0.1:{head.getsockname()[1]}")
    settle_authentication()
    assert (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])) == ("token", 64)
