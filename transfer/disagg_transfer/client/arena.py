"""The agent's arena as its engine has it: mapped host memory, or a GPU's by the engine's torch."""

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol


class OnGpu(Protocol):
    """The arena on a GPU; disagg_transfer.engines.cuda.DeviceArena is one."""

    bytes: Any  # a tensor of bytes, sliced as memory is

    def close(self) -> None: ...


OpenOnGpu = Callable[..., OnGpu]  # (handle=, gpu=, nbytes=)


class ArenaView:
    """What the extents of one connection are slices of.

    `lifeline` is closed when nothing of this process can write to the arena any more: that tells
    the agent. At exit the kernel closes it, since a thread may be writing until the very end.
    """

    def __init__(self, host: memoryview, on_gpu: OnGpu | None) -> None:
        self._host, self._on_gpu = host, on_gpu

    @classmethod
    def of_host(cls, arena: int, size: int, *, lifeline: int) -> "ArenaView":
        """Map the descriptor; the mapping ends with the last view of it."""
        mapping = mmap.mmap(arena, size)
        weakref.finalize(mapping, os.close, os.dup(lifeline)).atexit = False
        return cls(memoryview(mapping), None)

    @classmethod
    def of_gpu(cls, on_gpu: OnGpu, *, lifeline: int) -> "ArenaView":
        """The mapping ends when the client is closed; its tensors are void then."""
        weakref.finalize(on_gpu, os.close, os.dup(lifeline)).atexit = False
        return cls(memoryview(b""), on_gpu)

    @property
    def whole(self) -> memoryview:
        """All of it in host memory; empty where it is on a GPU."""
        return self._host

    def host(self, offset: int, nbytes: int) -> memoryview:
        """Empty where the arena is on a GPU."""
        return self._host[offset : offset + nbytes]

    def gpu(self, offset: int, nbytes: int) -> Any:
        """None where the arena is in host memory."""
        return None if self._on_gpu is None else self._on_gpu.bytes[offset : offset + nbytes]

    def leave(self) -> None:
        """The client's own part ends; views of host memory have theirs."""
        self._host = memoryview(b"")
        if self._on_gpu is not None:
            self._on_gpu.close()
            self._on_gpu = None
