"""Ray's node provider for Compute Engine, with the rights that `setup.sh` gives out and no others.

Ray's own bootstrap gives an account the rights to administer all machines and buckets of the project, and puts a key
for all of the project's machines into the project's metadata, whenever `ray up` finds them missing. Here the network,
the accounts and the key are made once, by a person, and the cluster file names them.
"""

import re
from typing import Any

import yaml
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider


class Provider(GCPNodeProvider):
    """Named in `infra/gcp/cluster.yaml`; imported by `ray up` and by the autoscaler on the head."""

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the cluster file as it is: it says everything.

        Raises:
            ValueError: a place that the user fills in still has its `YOUR-...` name.
        """
        used = {
            name: node_type
            for name, node_type in cluster_config["available_node_types"].items()
            if node_type["max_workers"] > 0 or name == cluster_config["head_node_type"]
        }
        # `metadata` only holds what the node types share, those that are switched off too
        text = yaml.safe_dump({**cluster_config, "available_node_types": used, "metadata": {}})
        if missing := sorted(set(re.findall(r"YOUR(?:-[A-Z]+)+", text))):
            raise ValueError(f"replace {', '.join(missing)} in the cluster file; infra/gcp/setup.sh writes one")
        return cluster_config
