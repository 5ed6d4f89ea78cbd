"""Copies that cannot be read are no reason to delete them."""

import logging
from pathlib import Path

import pytest

from data import storage
from orchestrator.tracking.spool import SpooledQueue
from orchestrator.tracking.spool_copies import SpoolCopies


def queue_of(path: Path, copies: SpoolCopies, *numbers: int) -> SpooledQueue:
    queue = SpooledQueue(path, copies.load)
    queue.wait_loaded()
    for number in numbers:
        queue.put({"n": number})
    while len(queue.since(0)[0]) < len(queue):
        pass
    return queue


def test_copies_that_cannot_be_read_stay_for_the_next_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    first = SpoolCopies(str(run), "spool")
    first.add(queue_of(tmp_path / "node 1", first, 1, 2))
    (copy,) = run.iterdir()
    before = copy.read_bytes()

    def refuse(url: str) -> bytes:
        raise PermissionError(f"no right to read {url}")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(storage, "read", refuse)
        second = SpoolCopies(str(run), "spool")
        second.add(queue_of(tmp_path / "node 2", second, 3))
        second.remove()
    assert ["cannot be read" in message for message in caplog.messages] == [True]
    assert copy.read_bytes() == before
    assert list(run.iterdir()) == [copy]

    third = SpoolCopies(str(run), "spool")
    assert third.load() == [{"n": 1}, {"n": 2}]


def test_a_later_copy_comes_after_those_that_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    first = SpoolCopies(str(run), "spool")
    first.add(queue_of(tmp_path / "node 1", first, 1))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read", None)
        second = SpoolCopies(str(run), "spool")
        second.add(queue_of(tmp_path / "node 2", second, 2))
    assert SpoolCopies(str(run), "spool").load() == [{"n": 1}, {"n": 2}]
