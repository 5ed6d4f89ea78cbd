"""Joining the named cluster or starting a local one, its missing resources, and the environment of workers."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from data.clusters import joining
from data.clusters.joining import cluster_is_named
from data.errors import NoCluster
from orchestrator.engine.cpu import ONE_HEAP
from orchestrator.job.errors import JobError
from orchestrator.job.kinds import AnyRun
from orchestrator.job.mistakes import problem
from orchestrator.job.sections import Cluster
from orchestrator.run.paths import PROJECT
from orchestrator.wording import count

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
CONTROLLER_SETTINGS = {  # of Ray Train's controller, unless the environment says otherwise
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a preemption notice lasts 30 s: poll every second, not every 5
    START_TIMEOUT: "600",  # a node may have to be bought first, and its image loaded
}
PRIVATE_SETTINGS = {  # environment of a private cluster's processes
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it asks whether nodes are being drained
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train sets it for its controller
}
STORE_ADDRESSES = (  # addresses of object stores, and the time-out of their requests
    *("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    "DATA_REQUEST_SECONDS",
)


@dataclass(frozen=True)
class JoinedCluster:
    """The Ray cluster that trains.

    Attributes:
        name: for people.
        private: whether it is this command's own.
        environment: of the workers.
    """

    name: str
    private: bool
    environment: dict[str, str]


@contextmanager
def _in_one_line(job: AnyRun) -> Iterator[None]:
    try:
        yield
    except NoCluster as error:
        raise JobError(f"{job.source}: {error}") from error


def connect(job: AnyRun) -> JoinedCluster:
    """Join the cluster that RAY_ADDRESS or `ray start` names; start a private one on this machine if there is none.

    Prints which one it is. Ends this process with code 2 if Ray takes too long (`data/clusters/joining.py`).

    Raises:
        JobError: the named cluster does not answer, or refuses this process, Ray cannot start here, or this machine
            lacks what the workers ask for.
    """
    _set_up_ray_train(job)
    gpus = job.cluster.resources_per_worker.get("GPU", 0)
    environment = worker_environment(gpus > 0, Path(job.source).absolute().parent if job.extensions else None)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _in_one_line(job):
            joining.check()
            return _connect(job, environment)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which prints a stack trace


def _connect(job: AnyRun, environment: dict[str, str]) -> JoinedCluster:
    if not ray.is_initialized() and not cluster_is_named():
        print(f"{job.name}: starting a private Ray on this machine", flush=True)
        _start(job, environment)
        return JoinedCluster("a private Ray", True, environment)
    if not ray.is_initialized():
        joining.join(job.source)
    address = ray.get_runtime_context().gcs_address
    print(f"{job.name}: using the Ray cluster at {address}", flush=True)
    return JoinedCluster(f"Ray at {address}", False, environment)


@contextmanager
def process_group_of_its_own() -> Iterator[None]:
    """What starts in the block is in another process group than this process.

    `timeout` and shells signal whole groups. A cluster that gets the command's SIGTERM, too, could not save any more.
    The leader of a session cannot change its group: then nothing happens.
    """
    if os.getsid(0) == os.getpid():
        yield
        return
    mine = os.getpgid(0)
    # A group needs a process: one that ends when this process closes its input, or is killed.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0) as anchor:
        os.setpgid(0, anchor.pid)
        try:
            yield
        finally:
            os.setpgid(0, mine)


def _set_up_ray_train(job: AnyRun) -> None:
    """Settings that Ray Train reads in the driver's environment."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if job.cluster.min_workers < job.cluster.max_workers:
        # Do not wait long for a lost node: the job can start with fewer workers.
        os.environ.setdefault(START_TIMEOUT, "60")
    for name, value in CONTROLLER_SETTINGS.items():
        os.environ.setdefault(name, value)


def _start(job: AnyRun, environment: Mapping[str, str]) -> None:
    """Start a cluster on this machine; all its processes get `environment`."""
    # CPUs only tell Ray how many workers fit. Other resources are real.
    wanted = job.cluster.resources_per_worker["CPU"] * job.cluster.max_workers
    cpus = max(os.cpu_count() or 1, math.ceil(wanted) + 1)
    os.environ.update({**PRIVATE_SETTINGS, **os.environ, **environment})  # the cluster's processes inherit it
    with process_group_of_its_own():
        joining.start(job.source, num_cpus=cpus)
    _check_resources(job, ray.cluster_resources())


def check_resources(job: AnyRun) -> None:
    """Check that this machine has what the workers ask for, unless a cluster is named. Starts nothing.

    Raises:
        JobError: it lacks something.
    """
    if set(job.cluster.resources_per_worker) == {"CPU"} or ray.is_initialized() or cluster_is_named():
        return
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    spec = ResourceAndLabelSpec(num_cpus=1).resolve(is_head=True, node_ip_address="127.0.0.1")
    _check_resources(job, spec.to_resource_dict())


def _check_resources(job: AnyRun, here: Mapping[str, float]) -> None:
    """Check the resources of this machine. CPUs are not counted: more workers than cores are slow but right."""
    lines: list[str] = []
    for resource, each in job.cluster.resources_per_worker.items():
        if resource != "CPU" and (amount := each * job.cluster.min_workers) > here.get(resource, 0):
            text = (
                f"the {count(job.cluster.min_workers, 'worker')} need {amount:g} {resource} and this machine has "
                f"{here.get(resource, 0):g}; join a cluster with RAY_ADDRESS, or --set "
                f"cluster.resources_per_worker.{resource}=0"
            )
            lines += problem(job, f"cluster.resources_per_worker.{resource}", text).lines
    if lines:
        raise JobError(*lines)


def missing_resources(cluster: Cluster) -> str:
    """What the present nodes lack for the fewest workers, in words; empty if nothing."""
    here = ray.cluster_resources()
    lacking = [
        f"{amount * cluster.min_workers:g} {name} (there are {here.get(name, 0):g})"
        for name, amount in cluster.resources_per_worker.items()
        if amount * cluster.min_workers > here.get(name, 0)
    ]
    return f"needed for {count(cluster.min_workers, 'worker')}: {', '.join(lacking)}" if lacking else ""


def worker_environment(gpu: bool, extensions: Path | None = None) -> dict[str, str]:
    """Environment of every worker. The nodes have their own rights to buckets, so secrets are not passed on.

    Args:
        gpu: whether workers compute on GPUs.
        extensions: folder with modules of the job's own. It is searched last: a file in it must not hide a package.
    """
    python_path = [str(PROJECT), os.environ.get("PYTHONPATH"), str(extensions) if extensions else None]
    return {
        **{name: os.environ[name] for name in STORE_ADDRESSES if name in os.environ},
        "DS_ACCELERATOR": "cuda" if gpu else "cpu",
        **({} if gpu else ONE_HEAP),
        # the packages lie in the project's folder; DeepSpeed compiles with the environment's ninja
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
