"""An arena in the memory of a GPU: allocated here, exported to the engine by an IPC handle.

The agent owns it for the reason that it owns the one in host memory, and because NIXL registers no
memory that another process has allocated. Digests are computed on the host, so they cost a copy of
every byte over PCIe: with this arena check a sample, or nothing.
"""

import mmap
import threading
from typing import Final

import numpy as np
import xxhash

from disagg_transfer.arena import ALIGNMENT, Span, check_fits
from disagg_transfer.cuda_driver import Driver, Gpu
from disagg_transfer.errors import ArenaError

STAGING_BYTES: Final = 8 << 20


class DeviceMemory:
    """As ArenaMemory, on a GPU."""

    inline_digest_bytes = 0  # each waits for a copy

    def __init__(self, size: int, *, gpu: Gpu, driver: Driver) -> None:
        if size < ALIGNMENT or size % ALIGNMENT:
            raise ArenaError(f"arena size {size} is not a positive multiple of {ALIGNMENT}")
        self.size, self.gpu = size, gpu
        self._driver = driver
        self.base = driver.allocate(gpu, size)
        self.handle = driver.export(gpu, self.base)
        self._staging = memoryview(mmap.mmap(-1, STAGING_BYTES))
        self._staged_at = int(np.frombuffer(self._staging, dtype=np.uint8).ctypes.data)
        driver.pin(gpu, self._staged_at, STAGING_BYTES)
        self._fetching = threading.Lock()  # one staging buffer

    def write(self, span: Span, data: bytes) -> None:
        check_fits(span, data)
        if data:
            self._driver.store(self.gpu, self.base + span.offset, data)

    def zero(self, span: Span) -> None:
        if span.nbytes:
            self._driver.zero(self.gpu, self.base + span.offset, span.nbytes)

    def close(self) -> None:
        """CUDA frees nothing that an engine may have open: it goes with this process."""

    def digest(self, span: Span) -> bytes:
        """xxh3 of the extent, as of host memory."""
        found = xxhash.xxh3_128()
        with self._fetching:
            for at in range(0, span.nbytes, STAGING_BYTES):
                piece = min(STAGING_BYTES, span.nbytes - at)
                start = self.base + span.offset + at
                self._driver.fetch(self.gpu, start, self._staged_at, piece)
                found.update(self._staging[:piece])
        return found.digest()
