"""The memory that payloads travel through, and who holds which part of it.

`Extents` is the book-keeping, pure. Its one promise: an extent is never handed out while anybody
may still read or write it. A free extent is FREE; one in use is HELD; one whose holder is done but
whose bytes may still move (a NIXL read past its deadline, an engine that has not said it stopped)
is UNSETTLED and stays out of reach until `settle`.
"""

import fcntl
import itertools
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import xxhash

from disagg_transfer.errors import ArenaError

ALIGNMENT: Final = 4096  # a page: extents never share one, and copies stay aligned


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An extent handed out. `number` is never used again, so a stale one cannot name another."""

    number: int
    offset: int
    nbytes: int


@dataclass(slots=True)
class _Held:
    span: Span
    reach: int  # bytes taken, aligned
    unsettled: bool = False


class Extents:
    """First fit over a list of free ranges, neighbors joined on free."""

    def __init__(self, size: int) -> None:
        if size < ALIGNMENT or size % ALIGNMENT:
            raise ArenaError(f"arena size {size} is not a positive multiple of {ALIGNMENT}")
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)]  # (offset, length), by offset
        self._held: dict[int, _Held] = {}
        self._numbers = itertools.count(1)

    @property
    def used(self) -> int:
        return sum(held.reach for held in self._held.values())

    @property
    def unsettled(self) -> int:
        return sum(held.reach for held in self._held.values() if held.unsettled)

    def reserve(self, nbytes: int) -> Span | None:
        """An extent, or None when no free range is long enough. An empty one takes no room."""
        if nbytes < 0:
            raise ArenaError(f"extent of {nbytes} bytes: the size is negative")
        reach = -(-nbytes // ALIGNMENT) * ALIGNMENT
        offset = self._take(reach)
        if offset is None:
            return None
        span = Span(number=next(self._numbers), offset=offset, nbytes=nbytes)
        self._held[span.number] = _Held(span, reach)
        return span

    def reserve_all(self, sizes: Sequence[int]) -> tuple[Span, ...] | None:
        """All or none, so that two requests never wait for each other's half."""
        spans: list[Span] = []
        for nbytes in sizes:
            span = self.reserve(nbytes)
            if span is None:
                for taken in spans:
                    self.free(taken)
                return None
            spans.append(span)
        return tuple(spans)

    def free(self, span: Span) -> None:
        held = self._find(span)
        if held.unsettled:
            raise ArenaError(f"extent {span.number} is unsettled; only settle() may free it")
        self._give_back(held)

    def quarantine(self, span: Span) -> None:
        """Its bytes may still move: keep it out of reach until it has settled."""
        self._find(span).unsettled = True

    def settle(self, span: Span) -> None:
        held = self._find(span)
        if not held.unsettled:
            raise ArenaError(f"extent {span.number} is in use, not unsettled; use free()")
        self._give_back(held)

    def _find(self, span: Span) -> _Held:
        held = self._held.get(span.number)
        if held is None or held.span != span:
            raise ArenaError(f"extent {span.number} is not held: freed before, or never handed out")
        return held

    def _take(self, reach: int) -> int | None:
        if reach == 0:
            return 0
        for place, (offset, length) in enumerate(self._free):
            if length < reach:
                continue
            if length == reach:
                del self._free[place]
            else:
                self._free[place] = (offset + reach, length - reach)
            return offset
        return None

    def _give_back(self, held: _Held) -> None:
        del self._held[held.span.number]
        if not held.reach:
            return
        joined: list[tuple[int, int]] = []
        for offset, length in sorted([*self._free, (held.span.offset, held.reach)]):
            if joined and sum(joined[-1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((offset, length))
        self._free = joined


def check_fits(span: Span, data: bytes) -> None:
    if len(data) != span.nbytes:
        raise ArenaError(f"{len(data)} bytes for extent {span.number} of {span.nbytes}")


class Memory(Protocol):
    """Where the bytes are. Any thread may call it."""

    size: int
    base: int  # the address that NIXL registers
    inline_digest_bytes: int  # up to here a digest takes less than handing it to a thread

    def write(self, span: Span, data: bytes) -> None: ...

    def zero(self, span: Span) -> None: ...

    def digest(self, span: Span) -> bytes: ...

    def close(self) -> None:
        """NIXL has let go of it. BufferError while a part of it is in use."""


class ArenaMemory:
    """A memfd that nobody can shrink, so a mapping of it can never fault."""

    # 0.2 ms; to another thread and back is 0.4 ms of processor time on two busy cores.
    inline_digest_bytes = 4 << 20

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("disagg-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self._mapping = mmap.mmap(self.fd, size)
        self.view = memoryview(self._mapping)
        self.base = int(np.frombuffer(self.view, dtype=np.uint8).ctypes.data)

    def write(self, span: Span, data: bytes) -> None:
        check_fits(span, data)
        self._bytes_of(span)[:] = data

    def zero(self, span: Span) -> None:
        self._bytes_of(span)[:] = bytes(span.nbytes)

    def digest(self, span: Span) -> bytes:
        return xxhash.xxh3_128_digest(self._bytes_of(span))

    def close(self) -> None:
        self.view.release()
        self._mapping.close()
        os.close(self.fd)

    def _bytes_of(self, span: Span) -> memoryview:
        return self.view[span.offset : span.offset + span.nbytes]
