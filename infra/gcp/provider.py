"""Ray's node provider for Compute Engine, with only the rights that `setup.sh` grants.

If `ray up` finds them missing, Ray's own bootstrap lets an account administer all machines and buckets of the project,
and adds a key for all of the project's machines to the project's metadata. Here, a person creates the network, the
accounts and the key once with `setup.sh`, and the cluster file names them.
"""

import re
from typing import Any

import yaml
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider


class Provider(GCPNodeProvider):
    """The class that `infra/gcp/cluster.yaml` names. `ray up` and the autoscaler on the head import it."""

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Returns the cluster file unchanged, because it is complete.

        Raises:
            ValueError: a value that the user must fill in is still a placeholder `YOUR-...`.
        """
        used = {
            name: node_type
            for name, node_type in cluster_config["available_node_types"].items()
            if node_type["max_workers"] > 0 or name == cluster_config["head_node_type"]
        }
        # `metadata` holds only what the node types share, including the types that are switched off.
        text = yaml.safe_dump({**cluster_config, "available_node_types": used, "metadata": {}})
        if missing := sorted(set(re.findall(r"YOUR(?:-[A-Z]+)+", text))):
            raise ValueError(f"replace {', '.join(missing)} in the cluster file; infra/gcp/setup.sh writes one")
        return cluster_config
