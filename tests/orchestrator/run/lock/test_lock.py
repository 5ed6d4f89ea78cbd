"""One owner of a run at a time, with real processes, on a disk and on both emulators of buckets."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data import storage
from infra.local.stores import Server, gcs_server, reached_by, s3_server
from orchestrator.run.lock import lease
from orchestrator.run.lock.lock import Guard, RunLock
from orchestrator.run.lock.owner import Owner, Taken, parse, read_owner
from tests.orchestrator.run.lock.conditions import enforcing
from tests.paths import ROOT

OWNER = """
import sys, time
from orchestrator.run.lock import lease, lock
lease.POLL_SECONDS = 0.2
lease.LEASE_SECONDS, lock.RENEW_SECONDS = 3.0, 0.5
lock.ALIVE_SECONDS = float(sys.argv[3])
from orchestrator.run.lock.owner import Taken
say = lambda line: print("say", line, flush=True)
try:
    with lock.RunLock(sys.argv[1], "no cluster", say=say, on_loss=lambda: print("lost", flush=True)) as held:
        print("owner", held.owner.token, flush=True)
        time.sleep(float(sys.argv[2]))
    print("released", flush=True)
except Taken as owner:
    print("taken", owner, flush=True)
"""


@pytest.fixture(scope="module")
def stores() -> Iterator[dict[str, Server]]:
    with gcs_server() as gs, s3_server() as s3, enforcing(gs) as strict:
        yield {"gs": gs, "gs, which enforces conditions": strict, "s3": s3}


@contextmanager
def folder_in(kind: str, stores: dict[str, Server], tmp_path: Path) -> Iterator[str]:
    """URL of a folder that does not exist."""
    if kind == "disk":
        yield str(tmp_path / "runs" / "one run")
        return
    with reached_by(stores[kind]) as url:
        yield f"{url}/{tmp_path.name}-{time.monotonic_ns()}/one run"


def start(folder: str, seconds: float, patience: float = 1.0) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", OWNER, folder, str(seconds), str(patience)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def line(process: "subprocess.Popen[str]") -> str:
    """The next line that is not the progress of a wait."""
    assert process.stdout is not None
    while (text := process.stdout.readline()).startswith("say"):
        pass
    return text.strip()


KINDS = ["disk", "gs", "gs, which enforces conditions", "s3"]


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_first_starts_one_trains(kind: str, stores: dict[str, Server], tmp_path: Path) -> None:
    for _ in range(3):
        with folder_in(kind, stores, tmp_path) as folder:
            both = [start(folder, 5.0), start(folder, 5.0)]
            said = sorted(line(process) for process in both)
            assert [text.split()[0] for text in said] == ["owner", "taken"], said
            assert any(f"(process {process.pid}, no cluster, " in said[1] for process in both)
            for process in both:
                process.kill()
                process.wait()
            if kind == "disk":
                break


@pytest.mark.parametrize("kind", KINDS)
def test_an_ended_start_leaves_nothing(kind: str, stores: dict[str, Server], tmp_path: Path) -> None:
    with folder_in(kind, stores, tmp_path) as folder:
        process = start(folder, 0.1)
        assert line(process).startswith("owner")
        assert line(process) == "released"
        assert not storage.exists(f"{folder}/lock")
        assert not storage.exists(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_the_next_start_waits_a_lease_at_most(
    kind: str, stores: dict[str, Server], tmp_path: Path
) -> None:
    with folder_in(kind, stores, tmp_path) as folder:
        first = start(folder, 60.0)
        assert line(first).startswith("owner")
        first.kill()
        first.wait()
        if kind != "disk":  # as if it had been killed on another machine
            owner = read_owner(f"{folder}/lock")
            assert owner is not None
            storage.write_atomic(f"{folder}/lock", replace(owner, host="elsewhere").dumps())
        began = time.monotonic()
        second = start(folder, 0.1)
        assert line(second).startswith("owner")
        assert (time.monotonic() - began > 3.0) == (kind != "disk")
        second.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_that_renews_is_named(kind: str, stores: dict[str, Server], tmp_path: Path) -> None:
    with folder_in(kind, stores, tmp_path) as folder:
        first = start(folder, 60.0)
        assert line(first).startswith("owner")
        second = start(folder, 0.1)
        assert f"process {first.pid}, no cluster" in line(second)
        assert first.poll() is None
        first.kill()
        first.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_taken_over(kind: str, stores: dict[str, Server], tmp_path: Path) -> None:
    with folder_in(kind, stores, tmp_path) as folder:
        first = start(folder, 60.0)
        token = line(first).split()[1]
        guard = Guard(folder, token)
        guard.check()
        said: list[str] = []
        with RunLock(folder, "Ray", say=said.append, on_loss=lambda: None, take_over=True) as held:
            assert f"process {first.pid}" in said[0]
            assert line(first) == "lost"
            with pytest.raises(Taken, match=f"process {os.getpid()}, Ray"):
                guard.check()
            Guard(folder, held.owner.token).check()
            first.send_signal(signal.SIGINT)
            first.wait()
            owner = read_owner(f"{folder}/lock")
            assert owner is not None
            assert owner.token == held.owner.token, "the loser must not remove our lock"


def test_rank_0_holds_a_killed_commands_run(tmp_path: Path) -> None:
    first = start(str(tmp_path), 60.0)
    token = line(first).split()[1]
    guard = Guard(str(tmp_path), token)
    first.kill()
    first.wait()
    second = start(str(tmp_path), 0.1)
    time.sleep(2.0)
    assert second.poll() is None, "it waits for rank 0"
    guard.check()
    assert guard._descriptor is not None
    os.close(guard._descriptor)
    assert line(second).startswith("owner")
    second.wait()
    assert Guard(str(tmp_path / "nowhere"), token)._descriptor is None, "a node that does not see the folder"


def test_an_outage_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.run.lock import lock

    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    lost: list[int] = []
    with RunLock(str(tmp_path), "Ray", say=print, on_loss=lambda: lost.append(1)) as held:

        def unreachable(*_: object) -> None:
            raise OSError("away")

        with monkeypatch.context() as away:
            away.setattr(lock, "foreign", unreachable)
            time.sleep(0.3)
        assert (lost, held.lost_to) == ([], None)
        other = replace(held.owner, token="f" * 32)
        (tmp_path / "lock").write_bytes(other.dumps())
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (lost, held.lost_to) == ([1], other)
    (tmp_path / "lock").unlink()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 3}', b"\xff\xfe", b"{" * 10_000])
def test_a_torn_lock_file_names_nobody(content: bytes, tmp_path: Path) -> None:
    assert parse(content) is None
    (tmp_path / "lock").write_bytes(content)
    with RunLock(str(tmp_path), "Ray", say=print, on_loss=lambda: None) as held:
        assert json.loads((tmp_path / "lock").read_bytes())["token"] == held.owner.token


def test_a_disk_without_locks_gets_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.run.lock import kernel

    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(kernel.fcntl, "flock", flock)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    with RunLock(str(tmp_path), "Ray", say=print, on_loss=lambda: None) as held:
        Guard(str(tmp_path), held.owner.token).check()
        owner, other = lease.renew(str(tmp_path / "lock"), held.owner)
        assert (owner.beats, other) == (1, None)


def test_the_owner_says_who_and_where() -> None:
    owner = Owner.here("Ray at 10.0.0.1:6379")
    assert str(owner).startswith(f"{owner.user} on {owner.host} (process {os.getpid()}, Ray at 10.0.0.1:6379, since ")
    assert (owner.is_alive, owner.is_dead) == (True, False)
    assert parse(owner.dumps()) == owner
    later = replace(owner, process=owner.process + "1")
    assert (later.is_alive, later.is_dead) == (False, True), "another process with that number"
    boot, namespace, started = owner.process.split(" ")
    for elsewhere in (
        replace(owner, host="elsewhere"),
        replace(owner, process=f"another-boot {namespace} {started}"),  # a host with the same name
        replace(owner, process=f"{boot} pid:[1] {started}", pid=2**22 + 1),  # a container with the same name
        replace(owner, process=""),
    ):
        assert (elsewhere.is_alive, elsewhere.is_dead) == (False, False)
