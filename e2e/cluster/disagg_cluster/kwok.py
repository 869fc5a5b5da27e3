"""Simulated H200 nodes: kwok answers for their kubelets, pods on them become Ready at once."""

from pathlib import Path
from typing import Any

from disagg_cluster.addresses import LOOPBACK, NODE_ADDRESS, Settings
from disagg_cluster.api import ApiClient, is_healthy
from disagg_cluster.binaries import KWOK, module_folder
from disagg_cluster.controlplane import Component
from disagg_cluster.layout import Layout, write_when_changed
from disagg_cluster.processes import Program

ANNOTATION = "kwok.x-k8s.io/node"
# On a node or pod: its kubelet is dead, and nothing answers for it any more.
DEAD = "disagg.dev/dead"
GPU_PRODUCT = "NVIDIA-H200"
CAPACITY = {
    "cpu": "192",
    "memory": "2Ti",
    "ephemeral-storage": "7Ti",
    "pods": "250",
    "nvidia.com/gpu": "8",
    "rdma/ib": "8",
}
STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
LEASE_S = 40


def node_name(index: int) -> str:
    return f"h200-{index:03d}"


def render_node(index: int, *, tainted: bool) -> dict[str, Any]:
    """Tainted beside a real node, so that only pods that ask for it are merely simulated."""
    taint = {"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node_name(index),
            "annotations": {ANNOTATION: "fake"},
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": node_name(index),
                "kubernetes.io/os": "linux",
                "nvidia.com/gpu.count": "8",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": GPU_PRODUCT,
                "type": "kwok",
            },
        },
        "spec": {"taints": [taint]} if tainted else {},
        "status": {"allocatable": CAPACITY, "capacity": CAPACITY},
    }


def stages_text(module: Path) -> str:
    """The stage files of the kwok release itself, as one configuration."""
    files = [
        path
        for stage in STAGES
        for path in sorted((module / "kustomize" / "stage" / stage).glob("*.yaml"))
        if path.name != "kustomization.yaml"
    ]
    return "---\n".join(path.read_text(encoding="utf-8").strip() + "\n" for path in files)


def write_kwok_files(layout: Layout) -> None:
    module = module_folder(KWOK, "sigs.k8s.io/kwok")
    write_when_changed(layout.configs / "kwok.yaml", stages_text(module))


def kwok(layout: Layout, binaries: Path, settings: Settings) -> Component:
    ports = settings.ports
    stages = layout.configs / "kwok.yaml"
    program = Program(
        name="kwok",
        argv=(
            str(binaries / "kwok"),
            f"--kubeconfig={layout.kubeconfigs / 'kwok.yaml'}",
            f"--config={stages}",
            f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
            f"--cidr={settings.kwok_network}",
            f"--disregard-status-with-annotation-selector={DEAD}=true",
            f"--node-ip={NODE_ADDRESS}",
            f"--node-lease-duration-seconds={LEASE_S}",
            f"--server-address={LOOPBACK}:{ports.kwok}",
        ),
        files=(stages,),
    )
    return Component(
        program=program, is_ready=lambda: is_healthy(ports.kwok, "/healthz", secure=False)
    )


def ensure_nodes(api: ApiClient, count: int, *, tainted: bool) -> None:
    """Exactly so many simulated nodes: makes the missing, removes the surplus."""
    listed = api.get("/api/v1/nodes?labelSelector=type%3Dkwok") or {"items": []}
    there = {item["metadata"]["name"] for item in listed["items"]}
    wanted = {node_name(index): index for index in range(count)}
    for name, index in wanted.items():
        if name not in there:
            api.create("/api/v1/nodes", render_node(index, tainted=tainted))
    for name in sorted(there - set(wanted)):
        api.delete(f"/api/v1/nodes/{name}")
