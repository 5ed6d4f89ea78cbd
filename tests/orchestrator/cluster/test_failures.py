"""Whose fault a failure is, from errors as PyTorch, Ray and this project raise them."""

import pickle

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data.errors import DataError, Unreadable
from orchestrator.cluster.failures import FailurePolicy, died, own_fault, root_cause
from orchestrator.cluster.notices import PlannedExit

GLOO = RuntimeError(
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:53902: Connection "
    "reset by peer. This is typically caused by a remote worker hanging or bugs in the application."
)
DIED = ray.exceptions.RayActorError(
    error_msg="The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 28330\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
)
KILLED_FOR_MEMORY = ray.exceptions.RayActorError(
    error_msg="The actor died because of memory.\nTask was killed due to the node running low on memory."
)

FULL_NODE = ray.exceptions.OutOfMemoryError(
    "3 worker(s) were killed due to the node running low on memory.\nMemory on the node (IP: 192.0.2.2, ID: 972a) was "
    "22.47GB used / 23.54GB limit (0.954342) OOM kill reason: Memory usage 24121536512B exceeded threshold of "
    "24012685312B (95.0% of 25276510208B limit)\nObject store memory usage: [- objects spillable: 1]\nRay killed 3 "
    "worker(s) based on the killing policy\nConsidered workers: [ Selected to kill: (Actor(d070): job ID=01, lease "
    "ID=06, task name=PreemptionWatcher.__init__, required resources={}, pid=19596, actual memory used=0.10GB, worker "
    "ID=d070) Selected to kill: (Actor(c909): job ID=01, lease ID=05, task name=RayTrainWorker.__init__, required "
    "resources={CPU_group_0_38: 2, CPU_group_38: 2}, pid=19472, actual memory used=19.74GB, worker ID=c909) ]"
)


def health(error: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(...)", error)


@pytest.mark.parametrize(
    "error",
    [
        *(
            GLOO,
            DIED,
            health(DIED),
            ConnectionResetError("peer"),
            TimeoutError(),
            dist.DistNetworkError("store is gone"),
        ),
        pickle.loads(pickle.dumps(Unreadable("gs://b/3.tar: cannot be read", away=True))),
        *(RuntimeError("NCCL error: unhandled system error"), RuntimeError("CUDA error: uncorrectable ECC error")),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_an_infrastructure_fault(error: Exception, started: bool) -> None:
    assert own_fault({0: error}, started=started) is None


@pytest.mark.parametrize(
    "error",
    [
        *(TypeError("no"), Unreadable("shard 3 is damaged"), ValueError("not one image fits"), MemoryError()),
        *(torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
    ],
)
def test_the_jobs_own_fault_among_what_it_does_to_the_others(error: Exception) -> None:
    assert own_fault({0: GLOO, 1: error, 2: GLOO}, started=True) is error


def test_a_process_killed_for_its_memory_before_the_first_step() -> None:
    assert own_fault({0: health(KILLED_FOR_MEMORY)}, started=False) is not None
    assert own_fault({0: health(KILLED_FOR_MEMORY)}, started=True) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            WorkerGroupError("long\ntext", {1: GLOO, 2: DataError("gs://b/3.tar: unreadable")}),
            "gs://b/3.tar: unreadable",
        ),
        (WorkerGroupError("long\ntext", {1: health(DIED)}), "its worker process has died"),
        (WorkerGroupError("long\ntext", {0: TypeError("a\nb")}), "TypeError: a b"),
        (ControllerError(MemoryError()), "MemoryError"),
        (
            WorkerGroupError("long\ntext", {0: health(FULL_NODE)}),
            "the node ran out of memory (22.47 of 23.54 GiB in use on 192.0.2.2), of which a worker held 19.74 GiB: "
            "use a smaller parallel.micro_batch, fewer workers a node, or a node with more memory",
        ),
        (
            WorkerGroupError("long\ntext", {0: health(KILLED_FOR_MEMORY)}),
            "the node ran out of memory: use a smaller parallel.micro_batch, fewer workers a node, or a node with more "
            "memory",
        ),
    ],
)
def test_the_cause_is_one_line(error: Exception, line: str) -> None:
    assert root_cause(error) == line


def test_whether_a_process_died() -> None:
    """Such a worker has not said in MLflow how the run ended."""
    dead = WorkerHealthCheckFailedError("", ray.exceptions.ActorDiedError())
    assert died(WorkerGroupError("", {0: ValueError("a bug"), 1: dead}))
    assert not died(WorkerGroupError("", {0: ValueError("a bug")}))
    assert died(ray.exceptions.GetTimeoutError("Ray itself"))


class Policy(FailurePolicy):
    """Asks no actor."""

    progress = (0, 0)

    def _steps(self) -> tuple[int, int]:
        return self.progress


def test_decisions() -> None:
    policy = Policy(FailureConfig(max_failures=2), None)

    def decide(error: Exception, step: int, done: int) -> FailureDecision:
        policy.progress = (step, done)
        return policy.make_decision(WorkerGroupError("", {0: GLOO, 1: error}))

    for _ in range(20):
        assert decide(PlannedExit("saved"), 5, 5) == FailureDecision.RETRY  # never counted
    bug = KeyError("x")
    assert decide(bug, 7, 7) == FailureDecision.RETRY
    assert decide(bug, 9, 2) == FailureDecision.RETRY  # it got further
    assert decide(bug, 9, 2) == FailureDecision.RAISE  # and not any more
    policy = Policy(FailureConfig(max_failures=2), None)
    assert decide(bug, 5, 0) == FailureDecision.RAISE  # before the first step
    policy = Policy(FailureConfig(max_failures=2), None)
    assert [decide(health(DIED), 5, 0) for _ in range(3)] == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]
