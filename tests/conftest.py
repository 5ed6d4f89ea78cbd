"""The longest tests first, so that processes that share the suite end together."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    clusters = {"ray_head", "local_cluster"}  # whole runs
    items.sort(key=lambda item: clusters.isdisjoint(getattr(item, "fixturenames", ())))
