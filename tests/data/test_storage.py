"""Reaching a server, or not, before anything waits for it; and what is tried again, and what is not."""

import errno
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data import storage
from data.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("variable", "url"), [("STORAGE_EMULATOR_HOST", "gs://b/x"), ("AWS_ENDPOINT_URL", "s3://b/x")])
def test_a_bucket_whose_server_answers_is_reachable(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{server.getsockname()[1]}")
        storage.check_reachable(url)


@pytest.mark.parametrize(("variable", "url"), [("STORAGE_EMULATOR_HOST", "gs://b/x"), ("AWS_ENDPOINT_URL", "s3://b/x")])
def test_a_bucket_whose_server_is_away_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    with pytest.raises(DataError, match=rf"{url}: cannot reach 127\.0\.0\.1 \(Connection refused\)"):
        storage.check_reachable(url)


def test_other_urls_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for url in ("/local", "memory://x", "s3://bucket", "https://example.org/x"):
        storage.check_reachable(url)


def test_s3_without_its_package_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from data import storage\n"
        "try: storage.read('s3://bucket/x')\n"
        "except storage.DataError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "s3://bucket/x: s3fs is not installed; run `pip install -r requirements-s3.txt`\n"


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
    storage.ShortRead("1 of 2 bytes came"),
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
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    work, retries = Answers(error, error), []
    assert storage.patiently(work, on_retry=lambda: retries.append(1)) == "done"
    assert (work.calls, len(retries)) == (3, 2)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_does_not_pass_is_raised_at_once(error: BaseException) -> None:
    work = Answers(error)
    with pytest.raises(type(error)):
        storage.patiently(work)
    assert work.calls == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tries, or after so long, with the last error itself."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    work = Answers(*(OSError(f"try {number}") for number in range(1, 100)))
    with pytest.raises(OSError, match=f"^try {storage.ATTEMPTS}$"):
        storage.patiently(work)
    assert storage.patiently(Answers(OSError("x")), attempts=2) == "done"
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"^try "):
        storage.patiently(work)
    assert time.monotonic() - begin < 0.9
    assert work.calls < 2 * storage.ATTEMPTS


def test_waits_double_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random up to a bound that doubles: workers that failed together do not come back together."""
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr(storage, "PATIENCE", 1e9)
    for _ in range(200):
        with pytest.raises(OSError, match="x"):
            storage.patiently(Answers(*[OSError("x")] * storage.ATTEMPTS))
    by_try = [waits[first :: storage.ATTEMPTS - 1] for first in range(storage.ATTEMPTS - 1)]
    for number, found in enumerate(by_try):
        bound = min(storage.FIRST_WAIT * 2**number, storage.LONGEST_WAIT)
        assert 0.85 * bound < max(found) <= bound
        assert min(found) < 0.15 * bound


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_files_opened_to_read_can_be_sought(tmp_path: Path, kind: str) -> None:
    url = f"{tmp_path}/file" if kind == "local" else f"memory://{tmp_path}/file"
    content = bytes(range(256)) * 100
    storage.write_atomic(url, content)
    with storage.open_read(url, 1000) as file:
        assert file.read(10) == content[:10]
        file.seek(-20, 2)
        assert file.read() == content[-20:]
        file.seek(5000)
        assert file.read(3000) == content[5000:8000]
        assert file.tell() == 8000
    with pytest.raises(FileNotFoundError):
        storage.open_read(f"{url}-not", 1000)


def test_patience_lasts_as_long_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tries than usual, until the time is over or a flag is set, which also ends the wait for the next one."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.002)
    errors = [OSError(f"try {number}") for number in range(1, 3 * storage.ATTEMPTS)]
    assert storage.patiently(Answers(*errors), patience=60) == "done"
    with pytest.raises(OSError, match=r"^try 1$"):
        storage.patiently(Answers(*errors), patience=0)
    with pytest.raises(PermissionError):
        storage.patiently(Answers(PermissionError()), patience=60)
    monkeypatch.setattr(storage, "FIRST_WAIT", 1e6)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 1e6)
    enough = threading.Event()
    with pytest.raises(OSError, match=r"^try 2$"):
        storage.patiently(Answers(*errors), patience=1e9, until=enough, on_retry=enough.set)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_files_and_folders_are_moved_listed_and_deleted(tmp_path: Path, kind: str) -> None:
    folder = f"{tmp_path}/there" if kind == "local" else f"memory://{tmp_path}/there"
    source, back = tmp_path / "source", tmp_path / "back"
    assert storage.contents(folder) == {}
    source.write_bytes(b"12345")
    storage.put_file(source, f"{folder}/inner/file")
    assert not source.exists()
    storage.write_atomic(f"{folder}/other", b"1")
    assert storage.contents(f"{folder}/inner") == {"file": 5}
    assert set(storage.contents(folder)) == {"inner", "other"}
    storage.get_file(f"{folder}/inner/file", back)
    assert back.read_bytes() == b"12345"
    with pytest.raises(FileNotFoundError):
        storage.get_file(f"{folder}/nothing", back)
    for _ in range(2):
        storage.remove_folder(f"{folder}/inner")
        assert set(storage.contents(folder)) == {"other"}
