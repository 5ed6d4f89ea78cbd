"""Of all tests: one token for the clusters they start, and the longest first."""

import os
import secrets
import signal

import pytest

# Ray reads its authentication once, when it is first imported, and test modules import it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# A shell that starts the tests in the background has them ignore Ctrl-C; what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first, so that processes that share the suite end together."""
    clusters = {"ray_head", "local_cluster"}
    items.sort(key=lambda item: clusters.isdisjoint(getattr(item, "fixturenames", ())))
