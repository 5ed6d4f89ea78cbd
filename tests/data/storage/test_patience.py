"""Which errors are retried and for how long."""

import errno
import threading
import time

import pytest

from data.errors import DataError
from data.storage import patience


class Answers:
    """Work that fails with given errors, one after the other, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


class WithStatus(Exception):
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


TRANSIENT = [
    OSError("connection lost"),
    OSError(errno.EIO, "input/output error"),
    ConnectionResetError(),
    TimeoutError(),
    patience.ShortRead("1 of 2 bytes came"),
    WithStatus(status=503),
    WithStatus(code=429),  # gcsfs
    WithStatus(code="500"),  # gcsfs, from some answers
]
FINAL = [
    FileNotFoundError("x"),
    PermissionError("x"),
    ValueError("Bad Request"),
    DataError("x"),
    OSError(errno.ENOSPC, "no space"),
    OSError(errno.EINVAL, "the bucket's name"),  # s3fs
    OSError("Forbidden: https://..."),  # gcsfs
    WithStatus(status=401),
    WithStatus(code=400),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    work, retries = Answers(error, error), []
    assert patience.patiently(work, on_retry=lambda: retries.append(1)) == "done"
    assert (work.calls, len(retries)) == (3, 2)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_does_not_pass_is_raised_at_once(error: BaseException) -> None:
    work = Answers(error)
    with pytest.raises(type(error)):
        patience.patiently(work)
    assert work.calls == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the number of tries, or after the time, with the last error itself."""
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    work = Answers(*(OSError(f"try {number}") for number in range(1, 100)))
    with pytest.raises(OSError, match=f"^try {patience.ATTEMPTS}$"):
        patience.patiently(work)
    assert patience.patiently(Answers(OSError("x")), attempts=2) == "done"
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"^try "):
        patience.patiently(work)
    assert time.monotonic() - begin < 0.9
    assert work.calls < 2 * patience.ATTEMPTS


def test_waits_double_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random up to a bound that doubles: workers that failed at one time do not retry at one time."""
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr(patience, "PATIENCE", 1e9)
    for _ in range(200):
        with pytest.raises(OSError, match="x"):
            patience.patiently(Answers(*[OSError("x")] * patience.ATTEMPTS))
    by_try = [waits[first :: patience.ATTEMPTS - 1] for first in range(patience.ATTEMPTS - 1)]
    for number, found in enumerate(by_try):
        bound = min(patience.FIRST_WAIT * 2**number, patience.LONGEST_WAIT)
        assert 0.85 * bound < max(found) <= bound
        assert min(found) < 0.15 * bound


def test_patience_lasts_as_long_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tries than usual, until the time is over or a flag is set. The flag also ends the present wait."""
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.002)
    errors = [OSError(f"try {number}") for number in range(1, 3 * patience.ATTEMPTS)]
    assert patience.patiently(Answers(*errors), patience=60) == "done"
    with pytest.raises(OSError, match=r"^try 1$"):
        patience.patiently(Answers(*errors), patience=0)
    with pytest.raises(PermissionError):
        patience.patiently(Answers(PermissionError()), patience=60)
    monkeypatch.setattr(patience, "FIRST_WAIT", 1e6)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 1e6)
    enough = threading.Event()
    with pytest.raises(OSError, match=r"^try 2$"):
        patience.patiently(Answers(*errors), patience=1e9, until=enough, on_retry=enough.set)
