"""The bridge that pods hang on, and taking away all that the node did to the machine's network."""

import json
import subprocess
from pathlib import Path
from typing import Any

from disagg_cluster.addresses import (
    BRIDGE,
    LAST_REAL_POD_ADDRESS,
    NODE_ADDRESS,
    NODE_PREFIX,
    POD_NETWORK,
    SERVICE_NETWORK,
)
from disagg_cluster.errors import MachineError

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
CLUSTER_RANGE = "198.18.0.0/15"  # pods and Services


def render_cni(*, address_folder: Path) -> dict[str, Any]:
    return {
        "cniVersion": "0.4.0",
        "name": "disagg",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "hairpinMode": True,  # a pod may reach itself through its Service
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(address_folder),
                    "ranges": [
                        [
                            {
                                "subnet": POD_NETWORK,
                                "rangeEnd": LAST_REAL_POD_ADDRESS,
                                "gateway": NODE_ADDRESS,
                            }
                        ]
                    ],
                    # No default route: what is not the cluster fails at once instead of hanging.
                    "routes": [{"dst": CLUSTER_RANGE}],
                },
            }
        ],
    }


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def _must(*argv: str) -> None:
    answer = _run(*argv)
    if answer.returncode != 0:
        raise MachineError(f"`{' '.join(argv)}` failed: {answer.stderr.strip()}")


def bridge_exists() -> bool:
    # Not by /sys: it shows the namespace it was mounted in, which need not be this one.
    return _run("ip", "link", "show", "dev", BRIDGE).returncode == 0


def conflicting_route() -> str | None:
    """A route of someone else inside our ranges."""
    routes = json.loads(_run("ip", "-json", "route", "show", "root", CLUSTER_RANGE).stdout or "[]")
    for route in routes:
        if route.get("dev") != BRIDGE:
            return f"{route.get('dst')} dev {route.get('dev')}"
    return None


def ensure_bridge(*, remembered: Path) -> None:
    """The node's address must exist before kubelet starts. Remembers what ip_forward was: the file
    also says that the bridge is this cluster's.
    """
    if not remembered.exists():
        _require_free_network()
        remembered.write_text(IP_FORWARD.read_text(encoding="ascii"), encoding="ascii")
    if not bridge_exists():
        _must("ip", "link", "add", BRIDGE, "type", "bridge")
    _must("ip", "address", "replace", f"{NODE_ADDRESS}/{NODE_PREFIX}", "dev", BRIDGE)
    _must("ip", "link", "set", BRIDGE, "up")
    # So that the machine itself reaches Services even when it has no default route.
    _must("ip", "route", "replace", SERVICE_NETWORK, "dev", BRIDGE, "src", NODE_ADDRESS)
    IP_FORWARD.write_text("1", encoding="ascii")


def _require_free_network() -> None:
    if bridge_exists():
        raise MachineError(
            f"bridge {BRIDGE} is there already, and not from this cluster: take down the other"
            f" one (one cluster with a node per machine), or `ip link delete {BRIDGE}` when"
            " its folder was removed by hand"
        )
    if (route := conflicting_route()) is not None:
        raise MachineError(
            f"the machine already routes {route}, inside the cluster's {CLUSTER_RANGE}:"
            " remove that route or its interface"
        )


def remove_network(*, remembered: Path) -> None:
    """Bridge, kube-proxy's tables, ip_forward as it was: only what this cluster made. The pods' veths
    went with their namespaces.
    """
    if not remembered.exists():
        return
    for family, table in PROXY_TABLES:
        if _run("nft", "list", "table", family, table).returncode == 0:
            _must("nft", "delete", "table", family, table)
    if bridge_exists():
        _must("ip", "link", "delete", BRIDGE)
    IP_FORWARD.write_text(remembered.read_text(encoding="ascii"), encoding="ascii")
    remembered.unlink()
