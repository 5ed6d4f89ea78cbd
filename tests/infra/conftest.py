"""Shared by the tests of where jobs run: a cluster with Ray's autoscaler."""

from collections.abc import Iterator

import pytest

from infra.local.autoscaler import Scaling
from infra.local.cluster import LocalCluster


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without CPUs and 0 to 3 worker nodes of one CPU, which go when they are idle for 5 s.

    One for all tests of a process. A test that changes the bounds with `set_workers` sets them back to 0 and 3.
    """
    folder = tmp_path_factory.mktemp("local_cluster")
    with LocalCluster.start(folder, Scaling(max_workers=3, cpus_per_worker=1, idle_seconds=5)) as cluster:
        yield cluster
