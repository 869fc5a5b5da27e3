"""What the machine must have before a node is started on it; each refusal says what to do."""

import os
from pathlib import Path

from disagg_cluster.addresses import Ports, taken_port
from disagg_cluster.binaries import require_free_disk
from disagg_cluster.errors import MachineError
from disagg_cluster.layout import Layout

FREE_BYTES_FOR_NODE = 15 << 30
LONGEST_DIRECTORY = 60  # a unix socket's path holds 107 bytes, containerd's lie below it
CGROUP = Path("/sys/fs/cgroup")
CGROUP_V1_HIERARCHIES = ("cpu", "cpuset", "memory", "pids", "devices", "freezer")


def require_root() -> None:
    if os.geteuid() != 0:
        raise MachineError(
            "the cluster's node needs root (containers, a bridge, mounts): run it with sudo, or"
            " use `up --control-plane-only`, or point KUBECONFIG at a cluster of yours"
        )


def require_cgroups(root: Path = CGROUP) -> None:
    if (root / "cgroup.controllers").exists():
        return
    missing = [name for name in CGROUP_V1_HIERARCHIES if not (root / name).is_dir()]
    if missing:
        raise MachineError(
            f"cgroup hierarchies not mounted below {root}: {', '.join(missing)}. Mount cgroup2 on"
            f" {root}, or each of these, as `mount -t cgroup -o NAME cgroup {root}/NAME`"
        )


def require_short_directory(layout: Layout) -> None:
    if len(str(layout.root)) > LONGEST_DIRECTORY:
        raise MachineError(
            f"{layout.root} is longer than {LONGEST_DIRECTORY} characters, too long for the unix"
            " sockets below it: choose a shorter --dir or DISAGG_CLUSTER_DIR"
        )


def require_free_ports(ports: Ports, *, ours: frozenset[int] = frozenset()) -> None:
    """Checked only where nothing of ours runs yet: our own listeners are no conflict."""
    wanted = [getattr(ports, name) for name in Ports.__slots__]
    taken = taken_port(port for port in wanted if port not in ours)
    if taken is not None:
        raise MachineError(
            f"port {taken} is taken by another program (`ss -ltnp 'sport = :{taken}'` names it):"
            " end it, or choose other ports with `up --base-port N`"
        )


def require_node_machine(layout: Layout) -> None:
    require_root()
    require_short_directory(layout)
    require_cgroups()
    require_free_disk(layout.root, FREE_BYTES_FOR_NODE, "the cluster with its images")
