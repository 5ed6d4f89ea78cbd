"""Of all tests: one token for the clusters they start, and the longest first."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import RayHead, start_head

# Ray reads its authentication once, when it is first imported, and test modules import it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# Threads that wait for each other's work must not spin: processes that share the suite would wait for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C; what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first, so that processes that share the suite end together."""
    clusters = {"ray_head", "local_cluster"}
    items.sort(key=lambda item: clusters.isdisjoint(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed digits: folders train/ and test/. Not to be written to."""
    from data.sources.digits import pack_digits

    folder = tmp_path_factory.mktemp("digits")
    pack_digits(str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head node of this test session's own, with a job server; it ends with the session."""
    with start_head(tmp_path_factory.mktemp("home")) as head:
        yield head
