"""`spec.hardware`: what the pods run on."""

from typing import Annotated, Literal

from pydantic import Field

from disagg_operator.api.base import ApiModel, Quantity
from disagg_operator.api.hardware_rules import DEVICE_RESOURCE
from disagg_operator.api.rules import SET

_DeviceResource = Annotated[str, Field(pattern=DEVICE_RESOURCE, max_length=128)]
_Product = Annotated[str, Field(min_length=1, max_length=63)]
_Interface = Annotated[str, Field(pattern="^[^/ ]{1,15}$", max_length=15)]


class TopologySpec(ApiModel):
    """Where the pods of one group stand to one another; of groups of several pods."""

    key: str = Field(
        min_length=1,
        max_length=253,
        description="Label of nodes that are near one another, such as a rack's or a block's.",
    )
    policy: Literal["Preferred", "Required"] = Field(
        "Preferred",
        description="Preferred: near one another where there is room. Required: or not at all.",
    )


class HugepagesSpec(ApiModel):
    """Huge pages of engine and agent, each."""

    size: Literal["2Mi", "1Gi"] = Field("2Mi", description="Size of a page.")
    amount: Quantity = Field(description="How much of them, a multiple of the size.")


class HardwareSpec(ApiModel):
    """What the pods run on."""

    profile: Literal["cpu", "h200", "custom"] = Field(
        "cpu",
        description="cpu: no device. h200: NVIDIA H200 nodes with GPUs and RDMA devices. custom:"
        " GPUs of any other kind, and RDMA devices where rdmaResource names them.",
    )
    gpu_resource: _DeviceResource | None = Field(
        None, description="Resource of the GPUs; nvidia.com/gpu when left out."
    )
    gpu_products: tuple[_Product, ...] = Field(
        (),
        max_length=16,
        description="Values of the nodes' label GPURESOURCE.product, such as NVIDIA-H200; those of"
        " H200 with h200, and any node with custom, when left out.",
        json_schema_extra=SET,
    )
    rdma_resource: _DeviceResource | None = Field(
        None,
        description="Resource of the RDMA devices; rdma/ib with h200 and none with custom when left"
        " out.",
    )
    rdma_devices: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="How many of them each agent asks for, and each engine of several nodes; 1 when"
        " left out, which with a shared device plugin gives all of the node.",
    )
    shared_memory: Quantity | None = Field(
        None, description="Size of the engine's /dev/shm; 32Gi with GPUs when left out."
    )
    hugepages: HugepagesSpec | None = Field(
        None, description="Huge pages of engine and agent; none when left out."
    )
    host_network: bool = Field(
        False,
        description="Pods use the network of their node, where RDMA does not reach the pods' own."
        " No two pods of one port are on a node then, and no NetworkPolicy holds for them.",
    )
    network_interface: _Interface | None = Field(
        None,
        description="Where the ranks of a group meet, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME of"
        " the engine; eth0, or with hostNetwork what they find, when left out.",
    )
    capabilities: tuple[Literal["IPC_LOCK", "SYS_RESOURCE", "SYS_NICE", "NET_RAW"], ...] = Field(
        (),
        max_length=4,
        description="Linux capabilities of engine and agent, beside IPC_LOCK, which comes with RDMA"
        " devices.",
        json_schema_extra=SET,
    )
    topology: TopologySpec | None = Field(
        None, description="Keep the pods of one group near one another."
    )
