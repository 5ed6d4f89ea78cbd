"""Which nodes Ray's autoscaler would start for a job, by its own scheduler on the node types of our files."""

from collections import Counter
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest

from orchestrator import load_job
from tests.paths import ROOT

JOBS = ROOT / "jobs"


def started(config: dict[str, Any], job: str, overrides: list[str]) -> Counter[str]:
    """Number of nodes by type that an empty cluster starts for all workers of a job; empty if they do not fit."""
    cluster = load_job(str(JOBS / job), overrides).cluster
    settings = AutoscalingConfig({**config, "auth": {}}, skip_content_hash=True)  # the hash would read the key file
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=settings.get_node_type_configs(),
        max_num_nodes=settings.get_max_num_nodes(),
        gang_resource_requests=[
            GangResourceRequest(
                requests=[ResourceRequestUtil.make(dict(cluster.resources_per_worker))] * cluster.max_workers
            )
        ],
    )
    reply = ResourceDemandScheduler().schedule(request)
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})
