"""The arena of one engine rank: in host memory, or on the rank's GPU."""

import functools

from disagg_transfer.arena import ArenaMemory
from disagg_transfer.contract import ENV_ARENA_MEMORY, MemoryKind
from disagg_transfer.cuda_driver import Driver, Gpu, load
from disagg_transfer.device_arena import DeviceMemory
from disagg_transfer.engine_messages import GpuMemory
from disagg_transfer.errors import DeviceError
from disagg_transfer.lane import OpenFabric
from disagg_transfer.nixl_fabric import Fabric

RankMemory = ArenaMemory | DeviceMemory


def open_memory(kind: MemoryKind, nbytes: int, *, local_rank: int) -> RankMemory:
    """Raises DeviceError, naming the setting, when it has to be on a GPU that is not there."""
    if kind is MemoryKind.HOST:
        return ArenaMemory(nbytes)
    try:
        driver = load()
        return DeviceMemory(nbytes, gpu=_gpu_of(driver, local_rank), driver=driver)
    except DeviceError as error:
        raise DeviceError(f"{ENV_ARENA_MEMORY}={kind}: {error}") from error


def _gpu_of(driver: Driver, local_rank: int) -> Gpu:
    gpus = driver.gpus
    if local_rank >= len(gpus):
        raise DeviceError(
            f"engine rank {local_rank} of this pod has no GPU, the container sees {len(gpus)}; "
            "give the agent every GPU of the pod, by a resource claim shared with the engine"
        )
    return gpus[local_rank]


def fabric_of(memory: RankMemory) -> OpenFabric:
    gpu = memory.gpu.ordinal if isinstance(memory, DeviceMemory) else None
    return functools.partial(Fabric, gpu=gpu)


def shown(memory: RankMemory) -> tuple[tuple[int, ...], GpuMemory | None]:
    """What the engine opens it by: descriptors to send along, or a handle."""
    if isinstance(memory, DeviceMemory):
        return (), GpuMemory(uuid=memory.gpu.uuid, handle=memory.handle)
    return (memory.fd,), None
