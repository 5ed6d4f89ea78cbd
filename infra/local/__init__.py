"""A cluster on one machine that grows and shrinks: `python -m infra.local up`, from Python `LocalCluster.start`."""

from infra.local.autoscaler import Scaling
from infra.local.cluster import ClusterError, LocalCluster, Node

__all__ = ["ClusterError", "LocalCluster", "Node", "Scaling"]
