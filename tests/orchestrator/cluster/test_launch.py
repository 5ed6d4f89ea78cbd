"""Between a job and its cluster: who trains a run, what its workers wait for, under which name nodes are asked for."""

import io
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import ScalingConfig

from orchestrator.cluster import display, launch
from orchestrator.cluster.board import Board, Progress
from orchestrator.cluster.connect import missing_resources
from orchestrator.cluster.display import Display
from orchestrator.cluster.elastic import FixedSizePolicy, SaveThenResizePolicy, release_request
from orchestrator.cluster.launch import start_board
from orchestrator.job.errors import JobError
from orchestrator.job.load import load_job
from orchestrator.job.sections import Cluster
from tests.cluster import CPUS, RayHead
from tests.orchestrator.tracking.stores import until
from tests.paths import ROOT


@pytest.fixture
def connected(ray_head: RayHead) -> Iterator[None]:
    ray.init(address=ray_head.address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("connected")
def test_a_cluster_trains_a_run_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_job(ROOT / "jobs/pretrain_digits.yaml", ["name=once"])
    monkeypatch.setattr(launch, "LEFTOVER_SECONDS", 1.0)
    first = start_board(job, "the run")
    with pytest.raises(JobError, match="name = once: another job on this cluster is training the run once"):
        start_board(job, "the run")
    start_board(job, "another run")
    ray.kill(first)  # its job was killed, and goes on under the same name
    monkeypatch.setattr(launch, "LEFTOVER_SECONDS", 60.0)
    start_board(job, "the run")


@pytest.mark.usefixtures("connected")
def test_what_the_workers_wait_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first workers, and when those that there were have gone; not while they train."""
    monkeypatch.setattr(display, "PATIENT_SECONDS", 0.0)
    monkeypatch.setattr(display, "LOG_SECONDS", 0.0)
    enough, more = (Cluster(workers=workers, resources_per_worker={"CPU": 2}) for workers in (CPUS // 2, CPUS))
    assert missing_resources(enough) == ""
    missing = f"needed for {CPUS} workers: {2 * CPUS} CPU (there are {CPUS})"
    assert missing_resources(more) == missing
    assert missing_resources(Cluster(workers=(1, CPUS), resources_per_worker={"CPU": 2})) == ""

    board = Board.remote()  # type: ignore[attr-defined]
    shown = io.StringIO()
    with Display(board, "a", lambda: missing_resources(more), shown):
        until(lambda: f"a: starting workers: {missing}\n" in shown.getvalue())
        ray.get(board.update.remote(Progress(step=7, total_steps=9, note="", workers=CPUS)))
        until(lambda: "a: step 7/9 (78%), 8 workers\n" in shown.getvalue())
        ray.get(board.group_gone.remote())
        assert ray.get(board.steps.remote()) == (7, 0)
        until(lambda: f"a: waiting for workers: {missing}\n" in shown.getvalue())
    assert shown.getvalue().count("\n") == 3


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("elastic", [False, True])
def test_a_killed_jobs_request_for_nodes_is_taken_over(elastic: bool) -> None:
    """The nodes that it had asked for are kept for its name, and are those of the next job with that name."""
    config = ScalingConfig(num_workers=(1, 5) if elastic else 5, resources_per_worker={"CPU": 1})
    run_id = f"run-{elastic}"

    def policy() -> FixedSizePolicy | SaveThenResizePolicy:
        return SaveThenResizePolicy(config, run_id, board=None) if elastic else FixedSizePolicy(config, run_id)

    policies = [policy(), policy()]
    for number, each in enumerate(policies):
        each.after_controller_start(SimpleNamespace(run_id=f"by chance {number}"))
        reserved = ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote(f"train-{run_id}"))
        assert sum(node["CPU"] for node in reserved.values()) == 5, "of 8, twice"
    coordinator = get_or_create_autoscaling_coordinator()
    release_request(run_id)  # the command, after Ctrl-C: the controller is killed
    assert ray.get(coordinator.get_reserved_resources.remote(f"train-{run_id}")) == {}, "at once"
