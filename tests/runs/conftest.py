"""Shared by whole runs: one folder and database, a run that nothing disturbs, a cluster with Ray's autoscaler."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from infra.local.autoscaler import Scaling
from infra.local.cluster import LocalCluster
from tests.cluster import RayHead
from tests.runs.helpers import JOB, settings

PROFILE = "profile/steps-000010-000012"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of a session are, with one MLflow database and one packed set: `digits`."""
    folder = tmp_path_factory.mktemp("runs")
    # A process that is killed while it makes the tables leaves a database that MLflow cannot open.
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder


@pytest.fixture(scope="session")
def quiet(ray_head: RayHead, folder: Path) -> Path:
    """A run of 60 steps that nothing disturbs: `ray job submit jobs/NAME.yaml`, as it stands."""
    job = [JOB, *settings(folder, "quiet", **{"profile.steps": [10, 12]})]
    output = ray_head.call("ray", "job", "submit", "--address", ray_head.jobs, "--", *job)
    assert "succeeded" in output
    assert "held-out test:" in output
    assert f"the profile of steps 10 to 12: {folder}/quiet/{PROFILE}/summary.md" in output
    return folder / "quiet"


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without CPUs and 0 to 3 worker nodes of one CPU, which go when they are idle for 5 s.

    One for all tests of a process. A test that changes the bounds with `set_workers` sets them back to 0 and 3.
    """
    folder = tmp_path_factory.mktemp("local_cluster")
    with LocalCluster.start(folder, Scaling(max_workers=3, cpus_per_worker=1, idle_seconds=5)) as cluster:
        yield cluster
