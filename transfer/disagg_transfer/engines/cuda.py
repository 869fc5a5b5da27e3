"""What an engine on a GPU does once with its agent's arena: pin it, or open it on the GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from disagg_transfer.cuda_driver import Driver, load


@contextlib.contextmanager
def pinned(arena: memoryview, *, device: torch.device) -> Iterator[None]:
    """Let the GPU copy to and from a host arena at full speed, for the length of the block.

    Registering takes seconds for gigabytes, so once for the engine's life; nothing to do for an
    engine on the CPU. Raises DeviceError when the driver refuses.
    """
    if device.type != "cuda":
        yield
        return
    driver = load()
    gpu = driver.gpus[torch.cuda.current_device() if device.index is None else device.index]
    address = int(np.frombuffer(arena, dtype=np.uint8).ctypes.data)
    driver.pin(gpu, address, arena.nbytes)
    try:
        yield
    finally:
        driver.unpin(gpu, address)


class DeviceArena:
    """The agent's arena on the GPU, as a tensor of bytes; close it when the agent is gone.

    The memory stays taken until both processes have let go of it, so an agent that starts again
    finds room only when its engine has closed this.
    """

    def __init__(self, *, handle: bytes, gpu: str, nbytes: int) -> None:
        """Raises DeviceError when this process does not see that GPU, or cannot open the handle."""
        self._driver: Driver = load()
        self._gpu = self._driver.gpu(gpu)
        self._address = self._driver.open(self._gpu, handle)
        self.bytes = torch.as_tensor(
            _Exported(self._address, nbytes), device=torch.device("cuda", self._gpu.ordinal)
        )

    def close(self) -> None:
        """Every tensor over it is void from here on."""
        self._driver.close(self._gpu, self._address)


class _Exported:
    """Device memory by the interface that torch takes without a copy."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
