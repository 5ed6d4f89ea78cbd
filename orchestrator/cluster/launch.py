"""From a checked job to a run on Ray: connect or start a cluster, start the workers, follow them to the end."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data import storage
from orchestrator.cluster.board import Board
from orchestrator.cluster.checkpoint_report import no_storage
from orchestrator.cluster.code_check import SameCode, other_code_here
from orchestrator.cluster.connect import JoinedCluster, missing_resources
from orchestrator.cluster.display import Display
from orchestrator.cluster.failures import died, root_cause
from orchestrator.cluster.notices import AnswerSigterm
from orchestrator.cluster.process_group import ProcessGroup
from orchestrator.cluster.trainer import SayFailures, Trainer
from orchestrator.cluster.watchdog import Watchdog
from orchestrator.job.kinds import AnyRun
from orchestrator.job.mistakes import problem
from orchestrator.run.folder import run_url
from orchestrator.run.provenance import code_digest

CONTROLLER_GONE = (
    "Ray Train's controller of the run is gone, and perhaps its cluster; on a running cluster the same command "
    "continues at the newest checkpoint"
)
LEFTOVER_SECONDS = 30.0  # for the actors of a killed job to end


class RunFailed(RuntimeError):
    """Training gave up. The message is one line: the cause.

    Attributes:
        unsaid: the run's status, FAILED or KILLED, if workers ended without telling MLflow; else None.
    """

    def __init__(self, cause: str, unsaid: Literal["FAILED", "KILLED"] | None = None) -> None:
        super().__init__(cause)
        self.unsaid = unsaid


class RunEnded(Exception):
    """The run was ended as the command asked; the message says where it was saved."""


def launch(
    job: AnyRun,
    run_id: str,
    work: Callable[[dict[str, Any]], None],
    *,
    cluster: JoinedCluster,
    lock: str,
    held_out: Mapping[str, str],
) -> None:
    """Run a job to its end.

    Args:
        job: with absolute URLs.
        run_id: the run's identity in MLflow.
        work: what each worker runs. It gets `job`, the job as plain data; `run_url`, the run's folder; `run_id`;
            `lock`; `held_out`; and `board`, the progress actor.
        cluster: where it runs.
        lock: the token of the run's lock, which this process holds.
        held_out: digests of the sets of `data.eval`, by name.

    Raises:
        JobError: a killed job's actors on this cluster do not end.
        RunEnded: SIGTERM came, and the workers have saved.
        RunFailed: workers failed more often than `cluster.max_failures` or through the job's own fault, ended the run
            because of its data, or Ray itself failed.
        KeyboardInterrupt: stopped by the user; Terminated: by SIGTERM, without another checkpoint.
    """
    url = run_url(job)
    digest = code_digest()
    gpus = job.cluster.resources_per_worker.get("GPU", 0)
    board = start_board(job, run_id)
    config = {"job": job.model_dump(mode="json"), "run_url": url, "run_id": run_id, "lock": lock, "board": board}
    config["held_out"] = dict(held_out)
    trainer = Trainer(
        # Bound, and not as Ray Train's own config: that is shown on the dashboard, and URLs may hold credentials.
        partial(work, config),
        run_id=run_id,
        board=board,
        private=cluster.private,
        grace=job.cluster.preemption_grace,
        say=lambda line: print(f"{job.name}: {line}", file=sys.stderr, flush=True),
        scaling_config=ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker=dict(job.cluster.resources_per_worker),
            elastic_resize_monitor_interval_s=job.cluster.resize_every,
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=storage.resolve(job.checkpoint.url)[1],
            storage_filesystem=no_storage(),
            failure_config=FailureConfig(max_failures=job.cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # pruned by manifest, in `checkpoint/saver.py`
            callbacks=[
                SameCode(digest),
                SayFailures(board),
                Watchdog(board, job.cluster.hang_timeout),
                AnswerSigterm(job.cluster.preemption_grace),
            ],
            worker_runtime_env={"env_vars": cluster.environment},
        ),
        backend_config=ProcessGroup(backend="nccl" if gpus > 0 else "gloo"),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with Display(board, job.name, partial(missing_resources, job.cluster), renewed=trainer.remind_board):
        try:
            trainer.fit()
        except ray.exceptions.RayActorError as error:  # not the workers': they are restarted
            if other := other_code_here(digest):
                raise RunFailed(other) from error
            raise RunFailed(CONTROLLER_GONE, "KILLED") from error
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise RunFailed(root_cause(error), "FAILED" if died(error) else None) from error
        signal.setitimer(signal.ITIMER_REAL, 0)
        reason, ended = ray.get([board.stopped.remote(), board.is_ended.remote()])
        if ended:
            raise RunEnded(reason)
        if reason:
            raise RunFailed(reason)


def start_board(job: AnyRun, run_id: str) -> Any:
    """The run's progress actor, on this node. Its name is the run's, so that a cluster trains it only once at a time.

    Raises:
        JobError: another job on this cluster is training the run. The board of a killed job ends soon after it.
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
