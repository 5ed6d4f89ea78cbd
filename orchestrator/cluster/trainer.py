"""Ray's trainer with our own policies for failures and sizes, and messages about failures for the terminal.

On a private cluster, which is one node for one run, less of Ray Train starts. It has no use for a process that frees
what a dead controller has reserved, nor for requests to an autoscaler. And all its processes inherit their environment
from the driver: for one of its own, Ray starts Python a second time in each process.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import ray
from ray.train import UserCallback
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator.cluster.elastic import (
    FixedSizePolicy,
    PrivateFixedSizePolicy,
    SaveThenResizePolicy,
    release_request,
)
from orchestrator.cluster.failures import FailurePolicy, own_fault, root_cause
from orchestrator.cluster.notices import PlannedExit

STOP_SECONDS = 10.0  # grace period for workers after Ctrl-C


class Terminated(KeyboardInterrupt):
    """SIGTERM, and the workers did not save in time."""


class Trainer(DataParallelTrainer):
    """Ray's trainer, with our own policies for failures and for the number of workers."""

    def __init__(
        self,
        *args: Any,
        run_id: str,
        board: Any,
        private: bool,
        grace: float,
        say: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._run_id = run_id
        self._grace = grace  # seconds after SIGTERM in which the workers may save
        self._say = say  # lines on the terminal
        self._board = board
        self._private = private  # whether the cluster is this run's own
        self._end_wanted = False  # whether SIGTERM came

    def remind_board(self) -> None:
        """Tell a new board what the previous one knew of this process."""
        if self._end_wanted:
            self._board.want_end.remote()

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # Ray Train has no public parameter for policies; `fit` passes them through here.
        parts["failure_policy"] = FailurePolicy(self.run_config.failure_config, self._board)
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = SaveThenResizePolicy(self.scaling_config, self._run_id, self._board)
        elif self._private:
            parts["scaling_policy"] = PrivateFixedSizePolicy(self.scaling_config)
        else:
            parts["scaling_policy"] = FixedSizePolicy(self.scaling_config, self._run_id)
        # This callback serves Ray's own datasets, which we do not use: its actor and imports cost every start seconds.
        left_out: tuple[type, ...] = (DatasetsCallback,)
        if self._private:
            left_out += (PlacementGroupCleanerCallback,)
        parts["callbacks"] = [part for part in parts["callbacks"] if not isinstance(part, left_out)]
        if not self._private:
            return super()._initialize_and_run_controller(**parts)

        controller = ray.remote(num_cpus=0)(PrivateController).remote(**parts)
        self._register_sigint_handler(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C and SIGTERM. Ray's own handler waits for the controller, which does not answer while it waits for
        nodes.

        Ctrl-C ends the workers. SIGTERM is a notice: the workers save at their next step and end the run, within the
        grace; then they are ended. A second signal ends this process at once, and a private cluster with it.
        """
        signals: list[int] = []

        def abort(error: type[BaseException]) -> NoReturn:
            with suppress(ray.exceptions.RayError):
                ray.get(controller.abort.remote(), timeout=STOP_SECONDS)
            ray.kill(controller)
            if not self._private:
                release_request(self._run_id)
            raise error

        def interrupted(number: int, frame: FrameType | None) -> None:
            signals.append(number)
            if len(signals) > 1:
                os._exit(128 + number)
            self._say("stopping the workers, and telling MLflow: up to 20 s; Ctrl-C again ends at once")
            abort(KeyboardInterrupt)

        def terminated(number: int, frame: FrameType | None) -> None:
            signals.append(number)
            if len(signals) > 1:
                os._exit(128 + number)
            self._say(f"SIGTERM: the workers save at their next step, within {self._grace:g} s, and end the run")
            self._end_wanted = True
            self.remind_board()
            signal.signal(signal.SIGALRM, lambda *_: abort(Terminated))
            signal.setitimer(signal.ITIMER_REAL, self._grace)

        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, terminated)


class PrivateWorkerGroup(WorkerGroup):
    """Workers with the environment of their node."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        return {}


class PrivateController(TrainController):
    """Ray Train's controller on a private cluster."""

    worker_group_cls = PrivateWorkerGroup


class SayFailures(UserCallback):
    """Says on the terminal why the workers are being restarted."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller."""
        self._board.group_gone.remote()
        leave = next((error for error in worker_exceptions.values() if isinstance(error, PlannedExit)), None)
        if leave is not None:
            self._board.say.remote(str(leave))
            return
        fault = own_fault(worker_exceptions, started=True)
        rank = next((rank for rank, error in worker_exceptions.items() if error is fault), min(worker_exceptions))
        self._board.say.remote(f"worker {rank} failed: {root_cause(worker_exceptions[rank])}")
