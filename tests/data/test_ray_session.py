"""The parts that need no cluster; test_pack.py runs on a real one."""

import os
import socket
import time

import pytest

from data import ray_session
from data.clusters import joining
from data.clusters.joining import cluster_is_named
from data.errors import DataError
from data.ray_session import Calls, session, settle_authentication


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """No cluster on this machine, and a home of its own."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes what the code sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(joining, "current_cluster", lambda: tmp_path / "cluster")


def test_one_worker_is_this_process():
    with session(1) as runner:
        assert list(runner(pow, [(2, 3), (3, 2)])) == [8, 9]
        assert list(runner(os.getpid, [()])) == [os.getpid()]


def test_small_work_starts_no_ray(monkeypatch):
    """Nor is Ray imported, or a cluster asked for, also with a named one."""
    monkeypatch.setattr(ray_session._OnRay, "_connect", lambda self: pytest.fail("Ray"))
    for address in ("local", "10.0.0.1:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with session(8) as runner:
            assert list(runner(pow, [(2, 3), (3, 2)])) == [8, 9]
            assert list(runner(os.getpid, Calls(lambda number: (), range(100)))) == [os.getpid()] * 100
            assert list(runner(pow, [])) == []


def test_large_work_starts_ray_for_the_rest(monkeypatch):
    """Stopped where it would join the cluster."""
    made = []

    def connect(self: object) -> None:
        raise DataError(f"Ray after {len(made)} calls")

    monkeypatch.setattr(ray_session, "usable_cpus", lambda: 4)
    monkeypatch.setattr(ray_session, "RAY_SECONDS", 0.5)
    monkeypatch.setattr(ray_session._OnRay, "_connect", connect)

    def arguments(number: int) -> tuple[float]:
        made.append(number)
        return (0.05,)

    with session(8) as runner, pytest.raises(DataError, match="Ray after 2 calls"):  # one made here, and one ready
        list(runner(time.sleep, Calls(arguments, range(1000))))


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
