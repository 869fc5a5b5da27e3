"""Run by its test inside namespaces of its own: a node goes up, runs a pod, and is gone without a trace.

The namespaces keep it apart from a cluster that runs on the same machine: network, mounts, and the
fixed places below /run, /var/lib and /var/log.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disagg_cluster import cluster, processes, teardown
from disagg_cluster.addresses import Ports, Settings
from disagg_cluster.api import ApiClient, wait_for
from disagg_cluster.errors import MachineError
from disagg_cluster.layout import Layout
from disagg_cluster.node import PAUSE_IMAGE

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}]},
}
PODS = "/api/v1/namespaces/default/pods"


def _output(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def traces(layout):
    """All that a cluster could leave on a machine."""
    return {
        "links": [line.split()[0] for line in _output("ip", "-br", "link").splitlines()],
        "routes": _output("ip", "route"),
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "tables": _output("nft", "list", "tables"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "cgroups": teardown.cgroup_folders(layout.cgroup),
        "shims": teardown.shim_pids(layout),
        "files": sorted(
            str(path)
            for top in ("/run", "/var/lib", "/var/log")
            for path in Path(top).rglob("*")
            if path.name != "xtables.lock"
        ),
    }


def refuses_a_routed_network(layout, settings):
    route = ("blackhole", "198.18.5.0/24")
    _output("ip", "route", "add", *route)
    with pytest.raises(MachineError, match=r"already routes 198\.18\.5\.0/24"):
        cluster.up(layout, settings)
    _output("ip", "route", "del", *route)
    cluster.down(layout)


def main():
    for folder in ("/run", "/var/lib", "/var/log"):
        _output("mount", "-t", "tmpfs", "-o", "size=20g", "tmpfs", folder)
    _output("ip", "link", "set", "lo", "up")
    layout = Layout(root=Path(f"/var/lib/disagg-{os.getpid()}"))
    settings = Settings(ports=Ports.free(), with_node=True)
    refuses_a_routed_network(layout, settings)
    before = traces(layout)
    try:
        cluster.up(layout, settings)
        api = ApiClient(port=settings.ports.api, pki=layout.pki)
        api.create(PODS, POD)
        wait_for("the pod", lambda: _is_running(api), timeout_s=60)
        assert teardown.pod_pids(layout)
        begun = time.monotonic()
        assert cluster.up(layout, settings) == []
        assert time.monotonic() - begun < 2
        records = processes.records(layout.run)
    finally:
        cluster.down(layout)
    assert not any(processes.is_alive(record) for record in records)
    after = traces(layout)
    differing = {
        what: (before[what], after[what]) for what in before if before[what] != after[what]
    }
    assert not differing, differing


def _is_running(api):
    pod = api.get(f"{PODS}/p")
    return pod is not None and pod.get("status", {}).get("phase") == "Running"


if __name__ == "__main__":
    sys.exit(main())
