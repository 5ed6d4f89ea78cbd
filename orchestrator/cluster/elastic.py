"""Changes of the number of workers, with a checkpoint before each.

Ray Train's elastic policy restarts the group as soon as the resources change, and the steps since the last checkpoint
are trained again. This policy asks first: the workers save at a common step and leave (`cluster/notices.py`), and only
then is the new number chosen. A node that is being drained counts as gone.
"""

import copy
import time
from contextlib import suppress
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)

WAIT_SECONDS = 1.0
MOST_SECONDS = 60.0  # of waiting for nodes, before fewer are requested
RELEASE_SECONDS = 5.0  # of waiting for the process that keeps the requests for nodes


def release_request(run_id: str) -> None:
    """Withdraw what the run has asked the autoscaler for.

    A controller that is killed does not do it, and Ray would keep the nodes for three minutes.
    """
    with suppress(ray.exceptions.RayError):
        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=RELEASE_SECONDS)


class StableRequestName(ScalingPolicy):
    """A policy that asks the autoscaler under the run's own name, the same at every start.

    Ray uses a random requester name, so nodes requested by a killed job are withheld from its successor, or bought
    again for it, for three minutes.

    Args:
        scaling_config: as of Ray Train.
        run_id: the run's identity.
    """

    def __init__(self, scaling_config: ScalingConfig, run_id: str) -> None:
        super().__init__(scaling_config)
        self._run_id = run_id

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray Train's controller."""
        stable = copy.copy(train_run_context)
        object.__setattr__(stable, "run_id", self._run_id)  # it is frozen
        super().after_controller_start(stable)


class FixedSizePolicy(StableRequestName, FixedScalingPolicy):
    """As many workers as the job says."""


class PrivateFixedSizePolicy(FixedScalingPolicy):
    """As many workers as the job says, on a cluster without an autoscaler: nothing is requested."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray Train's controller. Ray's own policy starts a process that keeps requests."""

    def _maybe_send_resource_request(self) -> None:
        pass


class SaveThenResizePolicy(StableRequestName, ElasticScalingPolicy):
    """Ray Train's elastic policy; a running group ends by itself.

    Args:
        scaling_config: with a range of workers.
        run_id: the run's identity, the same at every start.
        board: the progress actor, through which the workers are asked to leave.
    """

    def __init__(self, scaling_config: ScalingConfig, run_id: str, board: Any) -> None:
        super().__init__(scaling_config, run_id)
        self._board = board
        self._possible = 0  # workers, at the last look
        self._waiting_since: float | None = None

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Called by Ray Train's controller every few seconds."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            # Nodes arrive one after the other, and each restart costs: ask once their number is stable.
            if decision.num_workers in (self._possible, self.scaling_config.max_workers):
                self._board.want_workers.remote(decision.num_workers)
            self._possible = decision.num_workers
        return NoopDecision()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Called by Ray Train's controller again and again, without a pause, until enough workers are possible."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._waiting_since = self._waiting_since or time.monotonic()
            time.sleep(WAIT_SECONDS)
        else:
            self._waiting_since = None
        return decision

    def _get_num_workers_for_resource_request(self) -> int:
        """The most; after a while the fewest, because an autoscaler buys nothing if the request is above its limits."""
        if self._waiting_since is not None and time.monotonic() - self._waiting_since > MOST_SECONDS:
            return int(self.scaling_config.min_workers)
        return super()._get_num_workers_for_resource_request()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Ray refreshes its list of nodes only every 20 s.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        staying = alive - set(ray._private.state.state.get_draining_nodes())
        return super()._count_possible_workers(
            {node: resources for node, resources in reserved_resources.items() if node in staying}
        )
