"""The embedded Kubernetes cluster: built from Go modules, run as processes of this machine."""

from disagg_cluster.cluster import control_plane
from disagg_cluster.errors import ClusterError

__all__ = ["ClusterError", "control_plane"]
