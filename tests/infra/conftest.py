"""Fixtures of the tests of infra/: a cluster with Ray's autoscaler."""

from collections.abc import Iterator

import pytest

from infra.local.autoscaler import Scaling
from infra.local.cluster import LocalCluster


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without CPUs and 0 to 3 worker nodes of one CPU, which are removed after 5 s without work.

    All tests of a process share it. A test that changes the bounds with `set_workers` resets them to 0 and 3.
    """
    folder = tmp_path_factory.mktemp("local_cluster")
    with LocalCluster.start(folder, Scaling(max_workers=3, cpus_per_worker=1, idle_seconds=5)) as cluster:
        yield cluster
