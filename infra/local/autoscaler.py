"""The configuration of Ray's autoscaler for nodes that are processes on this machine."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

HEAD_ID = "f" * 51 + "0" * 5
"""Id of the head: the first that Ray's provider gives."""
HEAD_ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,  # tells the autoscaler which of the provider's nodes is the head
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
NODE_OBJECT_STORE_BYTES = 90 << 20
COMMANDS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")


@dataclass(frozen=True)
class Scaling:
    """Limits of the autoscaler.

    Attributes:
        min_workers: minimum number of worker nodes, even if nothing needs them.
        max_workers: maximum number of worker nodes.
        cpus_per_worker: CPUs that each worker node announces. The machine's cores are not divided.
        idle_seconds: time after which a node without work is removed.
    """

    min_workers: int = 0
    max_workers: int = 3
    cpus_per_worker: int = 1
    idle_seconds: float = 30.0


def write_config(path: Path, address: str, scaling: Scaling) -> None:
    """Writes the configuration atomically, because the autoscaler may be reading it.

    Args:
        address: of the head.
    """
    worker = {
        "resources": {"CPU": scaling.cpus_per_worker, "object_store_memory": NODE_OBJECT_STORE_BYTES},
        "node_config": {},
        "min_workers": scaling.min_workers,
        "max_workers": scaling.max_workers,
    }
    config = {
        "cluster_name": "local",
        "max_workers": scaling.max_workers,
        "idle_timeout_minutes": scaling.idle_seconds / 60,
        "provider": {
            # Named by its class, because Ray's package lacks the defaults of the type "fake_multinode".
            "type": "external",
            "module": PROVIDER,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        **{f"{name}_commands": [] for name in COMMANDS},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=1))
    os.replace(partial, path)
