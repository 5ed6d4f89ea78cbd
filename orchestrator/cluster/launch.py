"""From a checked job to a run on Ray: connect or start a cluster, start the workers, follow them to the end."""

import logging
import math
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.ray_session import CURRENT_CLUSTER, cluster_is_named
from orchestrator.cluster.display import Board, Display
from orchestrator.cluster.elastic import AskFirst, Fixed
from orchestrator.cluster.failures import FailurePolicy, own_fault, root_cause
from orchestrator.cluster.notices import AnswerSigterm, Leave
from orchestrator.cluster.watchdog import Watchdog
from orchestrator.engine.cpu_memory import ONE_HEAP
from orchestrator.job.kinds import PretrainJob
from orchestrator.job.load import JobError, problem
from orchestrator.job.sections import Cluster
from orchestrator.run.folder import forget_rays_snapshot, run_url
from orchestrator.training.loop import train
from orchestrator.wording import count

STORE_ADDRESSES = (  # which object stores are meant, and how patient to be with them
    *("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    "DATA_REQUEST_SECONDS",
)

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
CONTROLLER_SETTINGS = {  # of Ray Train's controller, unless the environment says otherwise
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of a notice of 30 s, not 5 pass unheard
    START_TIMEOUT: "600",  # a node may have to be bought, and its image loaded, first
}
CONTROLLER_GONE = (
    "Ray Train's controller of the run is gone, and perhaps its cluster; once there is one, the same command continues "
    "at the newest checkpoint"
)
STOP_SECONDS = 10.0  # that workers may take to end after Ctrl-C
LEFTOVER_SECONDS = 30.0  # that a killed job's actors may take to go

ROOT = Path(__file__).resolve().parents[2]


class RunFailed(RuntimeError):
    """Training gave up. The message is one line: the cause."""


class Trainer(TorchTrainer):
    """Ray's trainer, under policies of our own for failures and for the number of workers."""

    def __init__(self, *args: Any, run_id: str, board: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._run_id, self._board = run_id, board

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # Ray Train has no public place for policies; `fit` passes them through here.
        parts["failure_policy"] = FailurePolicy(self.run_config.failure_config, self._board)
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = AskFirst(self.scaling_config, self._run_id, self._board)
        else:
            parts["scaling_policy"] = Fixed(self.scaling_config, self._run_id)
        # Shards for Ray's own datasets, of which there are none: an actor and imports that cost every start seconds.
        parts["callbacks"] = [part for part in parts["callbacks"] if not isinstance(part, DatasetsCallback)]
        return super()._initialize_and_run_controller(**parts)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C. Ray's own handler waits for the controller, which answers no sooner than there are nodes for it."""

        def stop(*_: object) -> NoReturn:
            with suppress(ray.exceptions.RayError):
                ray.get(controller.abort.remote(), timeout=STOP_SECONDS)
            ray.kill(controller)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)


class SayFailures(UserCallback):
    """Tells the person at the terminal why the workers are being restarted."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller."""
        self._board.group_gone.remote()
        leave = next((error for error in worker_exceptions.values() if isinstance(error, Leave)), None)
        if leave is not None:
            self._board.say.remote(str(leave))
            return
        fault = own_fault(worker_exceptions, started=True)
        rank = next((rank for rank, error in worker_exceptions.items() if error is fault), min(worker_exceptions))
        self._board.say.remote(f"worker {rank} failed: {root_cause(worker_exceptions[rank])}")


def launch(job: PretrainJob, run_id: str) -> None:
    """Run a job to its end. All its URLs are absolute; `run_id` identifies the run in MLflow.

    Raises:
        JobError: there is no cluster where one is named, this machine can never give what the job asks for, or the run
            is being trained already.
        RunFailed: workers failed more often than `cluster.max_failures` or through the job's own fault, ended the run
            because of its data, or Ray itself failed.
        KeyboardInterrupt: stopped by the user.
    """
    url = run_url(job)
    gpus = job.cluster.resources_per_worker.get("GPU", 0)
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # these are read here, by Ray Train's driver side
    if job.cluster.min_workers < job.cluster.max_workers:
        os.environ.setdefault(START_TIMEOUT, "60")  # a node that goes meanwhile is not waited for: fewer will do
    for name, value in CONTROLLER_SETTINGS.items():
        os.environ.setdefault(name, value)
    connect(job)
    board = claim_board(job, run_id)
    forget_rays_snapshot(url)
    fs, folder = fsspec.core.url_to_fs(url)
    parent, _, name = folder.rpartition("/")
    local = "file" in fs.protocol
    trainer = Trainer(
        # Bound, and not as Ray Train's own config: that is shown on the dashboard, and URLs may hold credentials.
        partial(train, {"job": job.model_dump(mode="json"), "run_url": url, "run_id": run_id, "board": board}),
        run_id=run_id,
        board=board,
        scaling_config=ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker=dict(job.cluster.resources_per_worker),
            elastic_resize_monitor_interval_s=job.cluster.resize_every,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=None if local else PyFileSystem(FSSpecHandler(fs)),
            failure_config=FailureConfig(max_failures=job.cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # pruned by manifest, in `checkpoint/saver.py`
            callbacks=[
                SayFailures(board),
                Watchdog(board, job.cluster.hang_timeout),
                AnswerSigterm(job.cluster.preemption_grace),
            ],
            worker_runtime_env={"env_vars": worker_environment(gpus > 0)},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus > 0 else "gloo"),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with Display(board, job.name, partial(missing_resources, job.cluster)):
        try:
            trainer.fit()
        except ray.exceptions.RayActorError as error:  # not the workers': they are restarted
            raise RunFailed(CONTROLLER_GONE) from error
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise RunFailed(root_cause(error)) from error
        if reason := ray.get(board.stopped.remote()):
            raise RunFailed(reason)


def claim_board(job: PretrainJob, run_id: str) -> Any:
    """The run's progress actor, on this node. Its name is the run's, so that one cluster trains a run only once.

    Raises:
        JobError: another job on this cluster is training the run. The board of one that was killed goes after it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"run-{run_id}", "namespace": "vit", "scheduling_strategy": here}
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while True:
        try:
            return Board.options(**options).remote()  # type: ignore[attr-defined]
        except ValueError as error:  # the name is taken
            if time.monotonic() > deadline:
                raise problem(
                    job, "name", f"another job on this cluster is training the run {job.name}; stop it first"
                ) from error
            time.sleep(1)


def connect(job: PretrainJob) -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names; start a local one if there is none.

    Raises:
        JobError: the named cluster does not answer, or the local machine lacks what the workers ask for.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster_is_named():
        try:
            ray.init(address="auto", **quiet)
            return
        except Exception as error:  # Ray raises many kinds here
            named = os.environ.get("RAY_ADDRESS")
            where = f"RAY_ADDRESS = {named}" if named else f"the cluster in {CURRENT_CLUSTER}"
            advice = "" if named else "; RAY_ADDRESS=local starts one for this job alone"
            reason = " ".join(str(error).split())
            raise JobError(f"{job.source}: {where}: cannot join that cluster: {reason}{advice}") from error
    needed = {name: amount * job.cluster.min_workers for name, amount in job.cluster.resources_per_worker.items()}
    # CPUs only tell Ray how many workers fit; more workers than cores are slow but right. Other things are real.
    wanted = job.cluster.resources_per_worker["CPU"] * job.cluster.max_workers
    cpus = max(os.cpu_count() or 1, math.ceil(wanted) + 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    here = ray.cluster_resources()
    for resource, amount in needed.items():
        if amount > here.get(resource, 0):
            raise problem(
                job,
                f"cluster.resources_per_worker.{resource}",
                f"the {job.cluster.min_workers} workers need {amount:g} {resource} and this machine has "
                f"{here.get(resource, 0):g}; join a cluster with RAY_ADDRESS, or --set "
                f"cluster.resources_per_worker.{resource}=0",
            )


def missing_resources(cluster: Cluster) -> str:
    """What the nodes that there are lack for the fewest workers, in words; empty if they have it all."""
    here = ray.cluster_resources()
    lacking = [
        f"{amount * cluster.min_workers:g} {name} (there are {here.get(name, 0):g})"
        for name, amount in cluster.resources_per_worker.items()
        if amount * cluster.min_workers > here.get(name, 0)
    ]
    return f"needed for {count(cluster.min_workers, 'worker')}: {', '.join(lacking)}" if lacking else ""


def worker_environment(gpu: bool) -> dict[str, str]:
    """Environment of every worker. The nodes have rights to buckets of their own: secrets are not passed on."""
    return {
        **{name: os.environ[name] for name in STORE_ADDRESSES if name in os.environ},
        "DS_ACCELERATOR": "cuda" if gpu else "cpu",
        **({} if gpu else ONE_HEAP),
        # the packages lie in the project's folder; DeepSpeed compiles with the environment's ninja
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
