"""Whether a server is reachable, before a request waits for it."""

import socket
import subprocess
import sys

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
def test_a_bucket_without_a_server_is_an_error_at_once(
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
