"""Hardware profiles: what a pod asks of its node, and what it may do there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.api.hardware import HardwareSpec, HugepagesSpec
from disagg_operator.api.spec import RoleSpec
from disagg_operator.api.transfer import TransferSpec

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
# A capability that is added takes effect for root only.
_ROOT_POD: Object = {
    "runAsUser": 0,
    "runAsGroup": 0,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Pinning memory for RDMA takes it; without RDMA nothing is pinned.
_LOCKING = "IPC_LOCK"


# A node's resolver knows no Service.
_HOST_NETWORK: Object = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    pod_security: Object
    engine_security: Object
    agent_security: Object
    engine_devices: Mapping[str, int | str]
    agent_devices: Mapping[str, int | str]
    pod_fields: Object
    engine_env: tuple[tuple[str, str], ...] = ()
    shared_memory: str = ""
    hugepages: str = ""  # size of a page
    arena_bytes: int
    claims: tuple[str, ...] = ()  # of the pod, that engine and agent share
    transport: str  # of spec.transfer, when it says nothing


def profile(hardware: HardwareSpec, *, role: RoleSpec, transfer: TransferSpec) -> Profile:
    return _CPU if hardware.profile == "cpu" else _accelerated(hardware, role, transfer)


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


def _accelerated(hardware: HardwareSpec, role: RoleSpec, transfer: TransferSpec) -> Profile:
    """What the manifest leaves out is that of H200 nodes, or with custom what all GPU nodes have."""
    gpu_claim = transfer.arena.gpu_claim
    is_h200 = hardware.profile == "h200"
    gpu = hardware.gpu_resource or _GPU
    rdma = hardware.rdma_resource or (_RDMA if is_h200 else "")
    devices: dict[str, int | str] = {rdma: hardware.rdma_devices or 1} if rdma else {}
    products = hardware.gpu_products or (_PRODUCTS if is_h200 else ())
    pages = _hugepages(hardware.hugepages)
    # A device plugin gives a whole GPU to one container; only a claim can be shared.
    engine = {**pages, **({} if gpu_claim else {gpu: role.gpus_per_node})}
    if role.nodes_per_replica > 1:
        engine |= devices
    capabilities = sorted({*hardware.capabilities, *((_LOCKING,) if rdma else ())})
    security = _security(capabilities)
    return Profile(
        pod_security=_ROOT_POD if capabilities else RESTRICTED_POD,
        engine_security=security,
        agent_security={**security, "readOnlyRootFilesystem": True},
        engine_devices=engine,
        agent_devices={**pages, **devices},
        claims=(gpu_claim,) if gpu_claim else (),
        pod_fields={
            **({"affinity": _on_products(gpu, products)} if products else {}),
            "tolerations": [{"key": gpu, "operator": "Exists", "effect": "NoSchedule"}],
            **(_HOST_NETWORK if hardware.host_network else {}),
        },
        engine_env=(
            *_rendezvous(hardware),
            *_nccl_devices(transfer.net_devices),
            *(() if capabilities else (("HOME", "/tmp"),)),  # noqa: S108 - this user has no home
        ),
        shared_memory=str(hardware.shared_memory or _SHARED_MEMORY),
        hugepages=hardware.hugepages.size if hardware.hugepages else "",
        arena_bytes=4 << 30,
        transport="PreferRDMA" if rdma else "Any",
    )


def _security(capabilities: Sequence[str]) -> Object:
    """Engines' images write all over their root file system."""
    added = {"add": list(capabilities)} if capabilities else {}
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], **added}}


def _rendezvous(hardware: HardwareSpec) -> tuple[tuple[str, str], ...]:
    """Of ranks, over the pod network; the data path finds RDMA by itself."""
    interface = hardware.network_interface or ("" if hardware.host_network else "eth0")
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if interface else ()
    return tuple((name, interface) for name in names)


def _nccl_devices(net_devices: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Those that UCX names with a port are RDMA devices; "=" asks NCCL for just these."""
    devices = [name for name in net_devices if ":" in name]
    return (("NCCL_IB_HCA", f"={','.join(devices)}"),) if devices else ()


def _hugepages(hugepages: HugepagesSpec | None) -> dict[str, int | str]:
    return {} if hugepages is None else {f"hugepages-{hugepages.size}": str(hugepages.amount)}


def _on_products(gpu: str, products: Sequence[str]) -> Object:
    expression = {"key": f"{gpu}.product", "operator": "In", "values": list(products)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
