"""Plain NIXL between two processes' own memory: what engines do without an agent.

Settings of the agent's own fabric, UCX's and the sleeping progress thread included, so that a ratio
compares the ways of moving a request and nothing else. READ of one contiguous range, or of prepared lists with
one descriptor per page of the pool and an index array per request.
"""

import time
from typing import Any, Final

import numpy as np
from nixl_cu13 import _bindings as nixl

from disagg_transfer.nixl_fabric import PROGRESS_DELAY_US
from disagg_transfer.ucx import UcxSettings

Descriptors = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
Indices = np.ndarray[tuple[int], np.dtype[np.int32]]

_LIMIT_S: Final = 120.0
_SPIN_S: Final = 200e-6
_NAP_S: Final = 200e-6


class StuckReadError(Exception):
    """A READ of the baseline did not end."""


class PlainNixl:
    """One NIXL agent over one pool."""

    def __init__(self, name: str, *, base: int, nbytes: int, passive: bool) -> None:
        agent = nixl.nixlAgentConfig()
        agent.useProgThread = passive
        agent.useListenThread = False
        agent.syncMode = nixl.NIXL_THREAD_SYNC_NONE
        agent.pthrDelay = PROGRESS_DELAY_US
        self._agent: Any = nixl.nixlAgent(name, agent)
        config = UcxSettings().engine_config
        self._backend = self._agent.createBackend("UCX", {"engine_config": config})
        self._region = nixl.nixlRegDList(nixl.DRAM_SEG, [(base, nbytes, 0, b"")])
        self._agent.registerMem(self._region, [self._backend])
        self._here = self._there = 0
        self._peer = ""

    @property
    def metadata(self) -> bytes:
        told: bytes = self._agent.getLocalMD()
        return told

    def meet(self, metadata: bytes) -> None:
        said = self._agent.loadRemoteMD(metadata)
        self._peer = said.decode() if isinstance(said, bytes) else str(said)

    def prepare(self, *, here: Descriptors, there: Descriptors) -> None:
        """Once per pool, as an engine does at its start; not part of any measured time."""
        mine = nixl.nixlXferDList(nixl.DRAM_SEG, here)
        theirs = nixl.nixlXferDList(nixl.DRAM_SEG, there)
        self._here = self._agent.prepXferDlist(mine, [self._backend])
        self._there = self._agent.prepXferDlist(self._peer, theirs, [self._backend])

    def read_range(self, *, local: int, remote: int, nbytes: int) -> float:
        """Seconds of one contiguous READ."""
        start = time.monotonic()
        here = nixl.nixlXferDList(nixl.DRAM_SEG, [(local, nbytes, 0)])
        there = nixl.nixlXferDList(nixl.DRAM_SEG, [(remote, nbytes, 0)])
        return self._finish(
            start,
            self._agent.createXferReq(nixl.NIXL_READ, here, there, self._peer, "", [self._backend]),
        )

    def read_pages(self, *, local: Indices, remote: Indices) -> float:
        """Seconds of one READ with a descriptor per page."""
        start = time.monotonic()
        return self._finish(
            start,
            self._agent.makeXferReq(
                nixl.NIXL_READ, self._here, local, self._there, remote, "", [self._backend]
            ),
        )

    def close(self) -> None:
        if self._here:
            self._agent.releasedDlistH(self._here)
            self._agent.releasedDlistH(self._there)
        if self._peer:
            self._agent.invalidateRemoteMD(self._peer)
        self._agent.deregisterMem(self._region, [self._backend])

    def _finish(self, start: float, handle: Any) -> float:
        status = self._agent.postXferReq(handle)
        spun = time.monotonic()
        while status == nixl.NIXL_IN_PROG:
            now = time.monotonic()
            if now - start > _LIMIT_S:
                raise StuckReadError(f"a plain NIXL READ has not ended within {_LIMIT_S:.0f} s")
            if now - spun > _SPIN_S:
                time.sleep(_NAP_S)
            status = self._agent.getXferStatus(handle)
        seconds = time.monotonic() - start
        self._agent.releaseXferReq(handle)
        if status != nixl.NIXL_SUCCESS:
            raise StuckReadError(f"a plain NIXL READ ended with status {status}")
        return seconds
