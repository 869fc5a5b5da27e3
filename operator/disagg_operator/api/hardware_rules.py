"""The CEL rules of `spec.hardware`, at spec, where defaults are filled in and transfer is in sight."""

from disagg_operator.api.rules import rule

# Of an extended resource, as device plugins name them.
DEVICE_RESOURCE = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
_FOR_GPUS = (
    "gpuResource",
    "rdmaResource",
    "rdmaDevices",
    "sharedMemory",
    "hugepages",
    "networkInterface",
)
_LISTS_FOR_GPUS = ("capabilities", "gpuProducts")
_NO_RDMA = "self.hardware.profile == 'custom' && !has(self.hardware.rdmaResource)"

HARDWARE_RULES = (
    rule(
        "self.hardware.profile != 'cpu' || "
        + " && ".join(
            (
                *(f"!has(self.hardware.{name})" for name in _FOR_GPUS),
                *(f"size(self.hardware.{name}) == 0" for name in _LISTS_FOR_GPUS),
                "!self.hardware.hostNetwork",
            )
        ),
        f"hardware: {', '.join((*_FOR_GPUS, 'hostNetwork'))}, {' and '.join(_LISTS_FOR_GPUS)} are for"
        " GPUs: leave them out with hardware.profile cpu, or set it to h200 or custom",
    ),
    rule(
        f"!({_NO_RDMA}) || !has(self.hardware.rdmaDevices)",
        "hardware.rdmaDevices %s of what? With hardware.profile custom set rdmaResource, too, such"
        " as rdma/ib",
        "self.hardware.rdmaDevices",
    ),
    rule(
        f"!({_NO_RDMA}) || !has(self.transfer.transport) ||"
        " self.transfer.transport != 'RequireRDMA'",
        "transfer.transport RequireRDMA needs hardware.rdmaResource with hardware.profile custom,"
        " such as rdma/ib: without devices nothing can move over RDMA",
    ),
)
