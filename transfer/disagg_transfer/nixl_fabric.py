"""The one module that imports NIXL: a typed, single-threaded adapter over its raw binding.

The raw binding, because only there can the progress thread be told to sleep: NIXL's own Python
class fixes `pthrDelay` to 0, and that thread then burns a core in an idle agent (measured 66-96 %
against 1.2 % at 1 ms and 0.2 % at 10 ms; every event ends its sleep, so that of 4000 READs of 64 KiB
none took longer for it). `nixl_cu13`, because `import nixl` may import torch, whose own UCX can
abort the process. NIXL has no abort: a released handle's bytes may still land, so `release` is
for handles in a terminal state only.

A region lies in host memory or on a GPU. Descriptors name that of the peer too, so it travels
before NIXL's own metadata: the peer's number of its GPU, or none.
"""

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, NewType

from disagg_transfer.errors import FabricError, PeerDisconnectedError
from disagg_transfer.ucx import UcxSettings

try:
    from nixl_cu13 import _bindings as nixl
except ImportError:
    from nixl_cu12 import _bindings as nixl

Handle = NewType("Handle", int)

PROGRESS_DELAY_US: Final = 10000
_PLACE: Final = struct.Struct("!h")
_HOST: Final = -1

_ERRORS: Final = tuple(
    getattr(nixl, name) for name in dir(nixl) if name.startswith("nixl") and name.endswith("Error")
)


class Progress(Enum):
    ACTIVE = "active"
    DONE = "done"


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except nixl.nixlRemoteDisconnectError as error:
        raise PeerDisconnectedError(f"{action}: the peer's NIXL endpoint is gone") from error
    except _ERRORS as error:
        raise FabricError(f"{action}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """UCX reads them while its context is made; what is set already wins."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class Fabric:
    """One NIXL agent with one registered region. Every method belongs to one thread.

    `gpu` is the number, in this process, of the GPU that the region lies on.
    """

    def __init__(
        self,
        name: str,
        *,
        base: int,
        size: int,
        ucx: UcxSettings,
        passive: bool,
        gpu: int | None = None,
    ) -> None:
        """`passive`: others read from here. A side that only reads progresses by its own polling.

        With a progress thread as well, the two contend for the same bytes: measured on two busy
        cores, 450 ms of processor time per GB read, 260 ms without it.
        """
        config = nixl.nixlAgentConfig()
        config.useProgThread = passive
        config.useListenThread = False
        config.syncMode = nixl.NIXL_THREAD_SYNC_NONE
        config.pthrDelay = PROGRESS_DELAY_US
        self.name = name
        self._place = _HOST if gpu is None else gpu
        self._places: dict[str, int] = {}  # of the peers' regions
        action = f"create the NIXL agent ({ucx}; UCX has logged what this machine has)"
        with _environment(ucx.environment), _translated(action):
            self._agent: Any = nixl.nixlAgent(name, config)
            self._backend = self._agent.createBackend("UCX", {"engine_config": ucx.engine_config})
            region = nixl.nixlRegDList(
                _segment(self._place), [(base, size, max(self._place, 0), b"")]
            )
            self._agent.registerMem(region, [self._backend])
            self.metadata: bytes = _PLACE.pack(self._place) + self._agent.getLocalMD()

    def add_peer(self, name: str, metadata: bytes) -> None:
        """Load a peer; its metadata must carry the name that its session authenticated."""
        if len(metadata) < _PLACE.size:
            raise FabricError(f"metadata of {name} is {len(metadata)} bytes, which is none")
        with _translated(f"load metadata of {name}"):
            told = self._agent.loadRemoteMD(metadata[_PLACE.size :])
        said = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        if said != name:
            self.remove_peer(said)
            raise FabricError(f"metadata names {said!r}, the session says {name!r}")
        (self._places[name],) = _PLACE.unpack_from(metadata)

    def remove_peer(self, name: str) -> None:
        self._places.pop(name, None)
        with _translated(f"remove {name}"):
            self._agent.invalidateRemoteMD(name)

    def read(self, peer: str, *, local: int, remote: int, nbytes: int) -> Handle:
        """A READ, not posted yet. Addresses outside a registered region are refused here."""
        with _translated(f"prepare a read from {peer}"):
            here = _descriptor(self._place, local, nbytes)
            there = _descriptor(self._places.get(peer, _HOST), remote, nbytes)
            return Handle(
                self._agent.createXferReq(nixl.NIXL_READ, here, there, peer, "", [self._backend])
            )

    def estimate(self, peer: str, *, local: int, remote: int, nbytes: int) -> int:
        """What UCX thinks such a read takes, in microseconds; nothing moves."""
        handle = self.read(peer, local=local, remote=remote, nbytes=nbytes)
        try:
            with _translated("estimate a read"):
                return int(self._agent.estimateXferCost(handle)[0])
        finally:
            self.release(handle)

    def post(self, handle: Handle) -> Progress:
        with _translated("post a read"):
            return self._progress(self._agent.postXferReq(handle))

    def poll(self, handle: Handle) -> Progress:
        with _translated("poll a read"):
            return self._progress(self._agent.getXferStatus(handle))

    def release(self, handle: Handle) -> None:
        with _translated("release a read"):
            self._agent.releaseXferReq(handle)

    def _progress(self, status: Any) -> Progress:
        if status == nixl.NIXL_SUCCESS:
            return Progress.DONE
        if status == nixl.NIXL_IN_PROG:
            return Progress.ACTIVE
        raise FabricError(f"NIXL status {status}")


def _segment(place: int) -> Any:
    return nixl.DRAM_SEG if place == _HOST else nixl.VRAM_SEG


def _descriptor(place: int, address: int, nbytes: int) -> Any:
    return nixl.nixlXferDList(_segment(place), [(address, nbytes, max(place, 0))])
