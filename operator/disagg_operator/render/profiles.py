"""Hardware profiles: what a pod asks of its node, and what it may do there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.api.spec import HardwareSpec, RoleSpec

Object = dict[str, Any]

_USER = 65532  # "nonroot" of the distroless images; agent and engine share it for the socket
_GPU = "nvidia.com/gpu"
# One device gives a container every HCA of a shared RDMA device plugin.
_RDMA = "rdma/ib"
_PRODUCTS = ("NVIDIA-H200", "NVIDIA-H200-NVL")
_SHARED_MEMORY = "32Gi"

_NO_PRIVILEGE: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
RESTRICTED_POD: Object = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER: Object = _NO_PRIVILEGE
# Pinning memory for RDMA takes IPC_LOCK, and a capability that is added takes effect for root only.
_ROOT_POD: Object = {
    "runAsUser": 0,
    "runAsGroup": 0,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_LOCKING: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
}


# Without RDMA nothing is pinned; engines' images write all over their root file system.
_UNPRIVILEGED: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    pod_security: Object
    engine_security: Object
    agent_security: Object
    engine_devices: Object
    agent_devices: Object
    pod_fields: Object
    engine_env: tuple[tuple[str, str], ...] = ()
    shared_memory: str = ""
    arena_bytes: int
    claims: tuple[str, ...] = ()  # of the pod, that engine and agent share
    transport: str  # of spec.transfer, when it says nothing


def profile(hardware: HardwareSpec, *, role: RoleSpec, gpu_claim: str | None) -> Profile:
    return _CPU if hardware.profile == "cpu" else _accelerated(hardware, role, gpu_claim)


_CPU = Profile(
    pod_security=RESTRICTED_POD,
    engine_security=RESTRICTED_CONTAINER,
    agent_security=RESTRICTED_CONTAINER,
    engine_devices={},
    agent_devices={},
    pod_fields={},
    # The root file system is read-only and the user has no home.
    engine_env=(("HOME", "/tmp"),),  # noqa: S108
    arena_bytes=64 << 20,
    transport="Any",
)


def _accelerated(hardware: HardwareSpec, role: RoleSpec, gpu_claim: str | None) -> Profile:
    """What the manifest leaves out is that of H200 nodes, or with custom what all GPU nodes have."""
    is_h200 = hardware.profile == "h200"
    gpu = hardware.gpu_resource or _GPU
    rdma = hardware.rdma_resource or (_RDMA if is_h200 else "")
    products = hardware.gpu_products or (_PRODUCTS if is_h200 else ())
    # A device plugin gives a whole GPU to one container; only a claim can be shared.
    engine: Object = {} if gpu_claim else {gpu: role.gpus_per_node}
    if role.nodes_per_replica > 1 and rdma:
        engine[rdma] = 1
    security = _LOCKING if rdma else _UNPRIVILEGED
    return Profile(
        pod_security=_ROOT_POD if rdma else RESTRICTED_POD,
        engine_security=security,
        agent_security={**security, "readOnlyRootFilesystem": True},
        engine_devices=engine,
        agent_devices={rdma: 1} if rdma else {},
        claims=(gpu_claim,) if gpu_claim else (),
        pod_fields={
            **({"affinity": _on_products(gpu, products)} if products else {}),
            "tolerations": [{"key": gpu, "operator": "Exists", "effect": "NoSchedule"}],
        },
        # Rendezvous of ranks goes over the pod network; the data path finds RDMA by itself.
        engine_env=(
            ("NCCL_SOCKET_IFNAME", "eth0"),
            ("GLOO_SOCKET_IFNAME", "eth0"),
            *(() if rdma else (("HOME", "/tmp"),)),  # noqa: S108 - this user has no home
        ),
        shared_memory=str(hardware.shared_memory or _SHARED_MEMORY),
        arena_bytes=4 << 30,
        transport="PreferRDMA" if rdma else "Any",
    )


def _on_products(gpu: str, products: Sequence[str]) -> Object:
    expression = {"key": f"{gpu}.product", "operator": "In", "values": list(products)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
