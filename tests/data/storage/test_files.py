"""Reaching a server, or not, before anything waits for it; files and folders by URL."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data import storage
from data.errors import DataError
from tests.paths import ROOT


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
        "from data import DataError, storage\n"
        "try: storage.read('s3://bucket/x')\n"
        "except DataError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "s3://bucket/x: s3fs is not installed; run `pip install -r requirements-s3.txt`\n"


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
