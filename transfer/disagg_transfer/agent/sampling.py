"""One sample pulled from one peer over the real lane: does it arrive, exactly, and how fast."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import xxhash

from disagg_transfer.agent.session import Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.canary import pattern
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.errors import FabricError, TransferFailed
from disagg_transfer.lane import Lane, Read, ReadEvent
from disagg_transfer.protocol import (
    Layout,
    SampleDone,
    SampleReady,
    SampleRefused,
    SampleWanted,
)

SMALL_BYTES: Final = 4096  # of the read that latency is taken from
PROBE_BYTES: Final = 1 << 20  # of the read whose cost UCX is asked for; nothing of it moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """`first_s` is the very first read: with a peer that was never read from, its connection."""

    nbytes: int
    seconds: float
    first_s: float
    latency_s: float
    cost: int  # as UCX estimates it for PROBE_BYTES

    @property
    def gbps(self) -> float:
        return self.nbytes / self.seconds / 1e9


class ArenaBusyError(Exception):
    """One of the two arenas has no room that nobody needs; nothing is wrong."""


class Sampling:
    """The reads of one sample. Its memory ends freed, or in quarantine until NIXL is done."""

    def __init__(self, session: Session, *, number: int, lane: Lane, storage: Storage) -> None:
        self.session, self._number = session, number
        self._lane, self._storage = lane, storage
        self._seed = secrets.token_bytes(16)
        loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[SampleReady | SampleRefused] = loop.create_future()

    def answered(self, answer: SampleReady | SampleRefused) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    async def run(self, sizes: Mapping[str, int]) -> Sampled:
        """`sizes` is bytes by component; raises TransferFailed or ArenaBusyError. The caller holds
        the clock, and cancels when the session is lost.
        """
        largest = max(sizes.values())
        data = await asyncio.to_thread(pattern, self._seed, largest)
        self.session.send(SampleWanted(number=self._number, seed=self._seed, nbytes=largest))
        try:
            ready = await self._answer
            if isinstance(ready, SampleRefused):
                raise ArenaBusyError(f"prefill pod {self.session.peer.pod}: {ready.detail}")
            return await self._read_all(sizes, data, offset=ready.offset)
        finally:
            self.session.send(SampleDone(number=self._number))

    async def _read_all(self, sizes: Mapping[str, int], data: bytes, *, offset: int) -> Sampled:
        layout = self.session.layout
        if layout is None or offset + len(data) > layout.arena_bytes:
            raise self._failed(Cause.PROTOCOL_ERROR, f"sample at {offset} is not in its arena")
        remote = layout.arena_base + offset
        small = data[:SMALL_BYTES]
        first_s = await self._read("the first bytes", small, remote)
        latency_s = await self._read("the first bytes", small, remote)
        seconds = 0.0
        for component, nbytes in sizes.items():
            seconds += await self._read(f"component {component}", data[:nbytes], remote)
        return Sampled(
            nbytes=sum(sizes.values()),
            seconds=seconds,
            first_s=first_s,
            latency_s=latency_s,
            cost=await self._cost(layout),
        )

    async def _read(self, what: str, data: bytes, remote: int) -> float:
        """Seconds of one read, checked; into memory that does not have the bytes already."""
        span = self._storage.spare(len(data))
        if span is None:
            raise ArenaBusyError(f"no {len(data)} bytes of the arena are idle")
        move = _Move(self.session, span, lane=self._lane, storage=self._storage)
        try:
            self._storage.zero(span)
            fault, seconds = await move.run(remote)
            found = b"" if fault else await self._storage.digest(span)
        finally:
            move.end()
        if fault:
            raise self._failed(Cause.TRANSPORT_ERROR, fault)
        if found != xxhash.xxh3_128_digest(data):
            raise self._failed(Cause.DIGEST_MISMATCH, f"{what}: not the bytes that were sent")
        return seconds

    async def _cost(self, layout: Layout) -> int:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        def told(cost: int | FabricError) -> None:
            loop.call_soon_threadsafe(_settle, found, cost)

        nbytes = min(PROBE_BYTES, layout.arena_bytes, self._storage.memory.size)
        self._lane.estimate(
            self.session.fabric_name,
            local=self._storage.memory.base,
            remote=layout.arena_base,
            nbytes=nbytes,
            finished=told,
        )
        try:
            return await found
        except FabricError as error:
            raise self._failed(Cause.TRANSPORT_ERROR, str(error)) from error

    def _failed(self, cause: Cause, detail: str) -> TransferFailed:
        pod = self.session.peer.pod
        return TransferFailed(cause, stage=Stage.WIRE, detail=detail, peer_pod=pod)


class _Move:
    """One read into one extent, which it gives back in the end: now, or once NIXL is done."""

    def __init__(self, session: Session, span: Span, *, lane: Lane, storage: Storage) -> None:
        self._session, self._span = session, span
        self._lane, self._storage = lane, storage
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[tuple[str, float]] = self._loop.create_future()
        self._read: Read | None = None  # under way
        self._over = False

    async def run(self, remote: int) -> tuple[str, float]:
        """What went wrong, empty if nothing, and the seconds until then."""
        started = time.perf_counter()
        self._read = self._lane.read(
            self._session.fabric_name,
            local=self._storage.memory.base + self._span.offset,
            remote=remote,
            nbytes=self._span.nbytes,
            listener=self._listen,
        )
        fault, ended = await self._outcome
        return fault, ended - started

    def end(self) -> None:
        self._over = True
        if self._read is None:
            self._storage.free(self._span)
        else:
            self._lane.abandon(self._read)
            self._storage.quarantine(self._span, writer=f"a sample of {self._session.peer.pod}")

    def _listen(self, event: ReadEvent, detail: str) -> None:
        if event is not ReadEvent.POSTED:
            fault = "" if event is ReadEvent.DONE else detail or "the read failed"
            outcome = (fault, time.perf_counter())
            self._loop.call_soon_threadsafe(self._terminal, outcome)

    def _terminal(self, outcome: tuple[str, float]) -> None:
        self._read = None
        if self._over:
            self._storage.settle(self._span)
        elif not self._outcome.done():
            self._outcome.set_result(outcome)


def _settle(found: asyncio.Future[int], cost: int | FabricError) -> None:
    if found.done():
        return
    if isinstance(cost, FabricError):
        found.set_exception(cost)
    else:
        found.set_result(cost)
