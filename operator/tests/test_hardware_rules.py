"""The real API server on `spec.hardware`: what it refuses, and with which words."""

import pytest

pytestmark = pytest.mark.api

ROLES = {role: {"gpusPerNode": 8, "parallelism": {"tp": 8}} for role in ("prefill", "decode")}


def on(profile, *, transfer=None, **hardware):
    return {
        "hardware": {"profile": profile, **hardware},
        "engine": {"type": "custom", "image": "x"},
        "roles": ROLES,
        "transfer": transfer or {},
    }


ALLOWED = {
    "hardware of another kind": on(
        "custom",
        gpuResource="amd.com/gpu",
        rdmaResource="rdma/hca_shared_devices_a",
        sharedMemory="16Gi",
        topology={"key": "topology.kubernetes.io/zone"},
    ),
    "what RDMA takes on H200": on(
        "h200",
        rdmaDevices=8,
        hugepages={"amount": "5120Mi"},
        hostNetwork=True,
        networkInterface="bond0.100",
        capabilities=["SYS_RESOURCE", "IPC_LOCK"],
    ),
    "devices of a named kind": on("custom", rdmaResource="rdma/hca", rdmaDevices=2),
    "RDMA alone where there are devices": on(
        "custom", rdmaResource="rdma/hca", transfer={"transport": "RequireRDMA"}
    ),
}
REFUSED = {
    "GPUs of no profile that has any": (
        {"hardware": {"profile": "cpu", "rdmaResource": "rdma/ib"}},
        ["hardware: gpuResource, rdmaResource", "hardware.profile cpu", "h200 or custom"],
    ),
    "products of GPUs without GPUs": (
        {"hardware": {"gpuProducts": ["NVIDIA-H200"]}},
        ["gpuProducts are for GPUs"],
    ),
    "a device that is no extended resource": (
        {"hardware": {"profile": "h200", "gpuResource": "gpu"}},
        ["spec.hardware.gpuResource", "gpu"],
    ),
    "custom hardware without GPUs": (
        {"hardware": {"profile": "custom"}},
        ["roles.prefill.parallelism: tp 1 * pp 1 must be gpusPerNode 0 * nodesPerReplica 1"],
    ),
    "a topology without its label": (
        {"hardware": {"topology": {"policy": "Required"}}},
        ["spec.hardware.topology.key", "Required"],
    ),
    "devices of no kind": (
        on("custom", rdmaDevices=2),
        ["hardware.rdmaDevices 2", "hardware.profile custom", "rdmaResource", "rdma/ib"],
    ),
    "RDMA alone without devices": (
        on("custom", transfer={"transport": "RequireRDMA"}),
        ["transfer.transport RequireRDMA", "hardware.rdmaResource", "rdma/ib"],
    ),
    "huge pages of a size that there is not": (
        on("h200", hugepages={"size": "4Mi", "amount": "1Gi"}),
        ["spec.hardware.hugepages.size", "4Mi", "2Mi", "1Gi"],
    ),
    "huge pages of no amount": (
        on("h200", hugepages={"size": "2Mi"}),
        ["spec.hardware.hugepages.amount", "Required"],
    ),
    "a capability that nobody needs": (
        on("h200", capabilities=["SYS_ADMIN"]),
        ["spec.hardware.capabilities[0]", "SYS_ADMIN", "IPC_LOCK", "SYS_RESOURCE"],
    ),
    "one capability twice": (
        on("h200", capabilities=["IPC_LOCK", "IPC_LOCK"]),
        ["spec.hardware.capabilities[1]", "IPC_LOCK"],
    ),
    "an interface that Linux would not take": (
        on("h200", networkInterface="a-name-of-16-chars"),
        ["spec.hardware.networkInterface", "15"],
    ),
    **{
        f"{field} without GPUs": ({"hardware": {field: value}}, [field, "are for GPUs"])
        for field, value in {
            "rdmaDevices": 1,
            "hugepages": {"amount": "1Gi"},
            "hostNetwork": True,
            "networkInterface": "eth1",
            "capabilities": ["NET_RAW"],
        }.items()
    },
}


@pytest.mark.parametrize("spec", ALLOWED.values(), ids=ALLOWED.keys())
def test_is_allowed(created, spec):
    created(spec)


@pytest.mark.parametrize(("spec", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_naming_field_value_and_what_is_allowed(missing, spec, words):
    lacks, message = missing(spec, words)
    assert not lacks, message
