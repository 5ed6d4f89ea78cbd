"""Changes of the number of workers, with a checkpoint before each.

Ray Train's elastic policy restarts the group as soon as other resources are there, and what was trained since the last
checkpoint is done again. This one asks first: the workers save at a common step and leave (`notices.py`), and only
then is the new number worked out. A node that is being drained counts as gone.
"""

import time
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

WAIT_SECONDS = 1.0
MOST_SECONDS = 60.0  # without enough nodes for a start, after which fewer are asked for


class AskFirst(ElasticScalingPolicy):
    """Ray Train's elastic policy; a running group ends by itself.

    Args:
        scaling_config: with a range of workers.
        board: the progress actor, which passes the wish on.
    """

    def __init__(self, scaling_config: ScalingConfig, board: Any) -> None:
        super().__init__(scaling_config)
        self._board = board
        self._possible = 0  # workers, when it was last looked at
        self._waiting_since: float | None = None

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Called by Ray Train's controller every few seconds."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            # Nodes arrive one after the other, and each restart costs: ask once their number stays.
            if decision.num_workers in (self._possible, self.scaling_config.max_workers):
                self._board.want_workers.remote(decision.num_workers)
            self._possible = decision.num_workers
        return NoopDecision()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Called by Ray Train's controller again and again, without a pause, until there are workers enough."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._waiting_since = self._waiting_since or time.monotonic()
            time.sleep(WAIT_SECONDS)
        else:
            self._waiting_since = None
        return decision

    def _get_num_workers_for_resource_request(self) -> int:
        """The most; after a while the least, for an autoscaler that is asked for more than it may buy buys nothing."""
        if self._waiting_since is not None and time.monotonic() - self._waiting_since > MOST_SECONDS:
            return int(self.scaling_config.min_workers)
        return super()._get_num_workers_for_resource_request()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        leaving = ray._private.state.state.get_draining_nodes()
        return super()._count_possible_workers(
            {node: resources for node, resources in reserved_resources.items() if node not in leaving}
        )
