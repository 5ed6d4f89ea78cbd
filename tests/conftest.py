"""The longest tests first, so that processes that share the suite end together."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "ray_head" not in getattr(item, "fixturenames", ()))  # whole runs on a cluster
