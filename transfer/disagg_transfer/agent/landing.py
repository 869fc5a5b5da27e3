"""One request's chunks on their way into decode's arena, and out of it to the engine.

A chunk waits for its extent, is read into it, is checked against its digest, and is then the
engine's until given back. Each holds only its own extent and never waits for another's, so a
request of any size passes through an arena of one chunk. Whatever happens, an extent ends in one
of three ways: given back by the engine, freed, or quarantined until the NIXL read into it is in a
terminal state.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from disagg_transfer.accounting import Part
from disagg_transfer.agent.fabric_link import FabricLink
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.routes import Routes
from disagg_transfer.agent.session import Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.contract import ENV_ARENA_BYTES, ENV_CREDITS, Cause, Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import TransferFailed
from disagg_transfer.integrity import Sampling
from disagg_transfer.lane import Lane, Read, ReadEvent
from disagg_transfer.protocol import Layout, Offer
from disagg_transfer.reads import LOST

# A request holds no more than this of the arena at a time, or one chunk: the rest is for others.
WINDOW_BYTES: Final = 64 << 20
# The control connection of a killed peer closes, and a peer's word comes, within this of the read.
_LOSS_GRACE_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every request uses."""

    lane: Lane
    storage: Storage
    routes: Routes
    faults: Faults
    timeouts: Timeouts
    integrity: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a request's chunks are read from."""

    session: Session
    layout: Layout  # of the engine that the request began with
    fabric: FabricLink


@dataclass(slots=True, eq=False)
class Chunk:
    offer: Offer
    part: Part
    checked: bool  # by its digest
    span: Span | None = None
    read: Read | None = None
    posted: bool = False


class Request(Protocol):
    """What a landing tells of; each may raise TransferFailed, which fails the request."""

    def started(self, stage: Stage, chunk: Chunk) -> None: ...

    def stopped(self, stage: Stage, chunk: Chunk) -> None: ...

    def landed(self, chunk: Chunk) -> None: ...

    def fail(self, failure: TransferFailed) -> None: ...

    def guarded(self, step: Callable[[], None]) -> None:
        """Take one step that an event from outside has called for."""


class Landing:
    def __init__(self, request: Request, *, tools: Tools, begun_at: float) -> None:
        self._request, self._tools, self._begun_at = request, tools, begun_at
        self._source: Source | None = None
        self._waiting: deque[Chunk] = deque()  # for an extent
        self._asking = False  # the first of them stands in a queue
        self._short_of = ""
        self._held: dict[int, Chunk] = {}  # by extent; in the engine's hands, too
        self._held_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._loop = asyncio.get_running_loop()

    @property
    def is_waiting(self) -> bool:
        return self._asking

    @property
    def held(self) -> bool:
        """Whether the engine, or a read, still has memory of it."""
        return bool(self._held)

    def begin(self, source: Source) -> None:
        self._source = source

    def fetch(self, offer: Offer, part: Part) -> None:
        checked = self._tools.integrity.checks(
            room=offer.room, component=offer.component, chunk=offer.chunk
        )
        self._waiting.append(Chunk(offer, part, checked))
        self._advance()

    def give_back(self, numbers: Iterable[int]) -> None:
        """The engine has scattered these. KeyError when one is not in its hands."""
        for number in numbers:
            chunk = self._held.pop(number)
            assert chunk.span is not None
            self._held_bytes -= chunk.span.nbytes
            self._tools.storage.free(chunk.span)
        if not self._over:
            self._advance()

    def give_up(self, *, with_engine: Iterable[int]) -> None:
        """Nothing more is read; what the engine may be reading stays its own."""
        self._over = True
        keep = set(with_engine)
        for task in self._tasks:
            task.cancel()
        for number, chunk in list(self._held.items()):
            if number in keep:
                continue
            del self._held[number]
            assert chunk.span is not None
            if chunk.read is None:
                self._tools.storage.free(chunk.span)
            else:
                self._tools.lane.abandon(chunk.read)
                self._tools.storage.quarantine(chunk.span, writer=f"a read from {self._peer_pod}")

    # -- an extent for each

    def _advance(self) -> None:
        """Read what there is room for, in the order of the offers."""
        while self._waiting and not self._asking:
            nbytes = self._waiting[0].offer.nbytes
            if self._held and self._held_bytes + nbytes > WINDOW_BYTES:
                return
            spans = self._reserve_now(nbytes)
            if spans is None:
                self._asking = True
                self._request.started(Stage.ALLOCATE, self._waiting[0])
                self._spawn(self._ask)
                return
            self._read(self._waiting.popleft(), spans[0])

    def _reserve_now(self, nbytes: int) -> tuple[Span, ...] | None:
        credit = self._fabric.credits
        if not credit.take_now(nbytes):
            return None
        spans = None
        try:
            spans = self._tools.storage.reserve_now((nbytes,))
        finally:
            if spans is None:
                credit.give(nbytes)
        return spans

    async def _reserve(self, nbytes: int) -> tuple[Span, ...]:
        """In turn: first for the peer's credit, then for room in the arena."""
        credit = self._fabric.credits
        self._short_of = f"its peer's credit, {credit.in_use} being in use ({ENV_CREDITS})"
        await credit.take(nbytes)
        storage = self._tools.storage
        self._short_of = f"room, {storage.used} of the arena's {storage.memory.size} bytes being "
        self._short_of += f"in use, {storage.unsettled} of them unsettled ({ENV_ARENA_BYTES})"
        try:
            return await storage.reserve((nbytes,), begun_at=self._begun_at)
        except BaseException:
            credit.give(nbytes)
            raise

    async def _ask(self) -> None:
        chunk = self._waiting[0]
        spans = await self._reserve(chunk.offer.nbytes)

        def granted() -> None:
            self._asking = False
            self._request.stopped(Stage.ALLOCATE, chunk)
            self._read(self._waiting.popleft(), spans[0])
            self._advance()

        self._request.guarded(granted)

    # -- its bytes

    def _read(self, chunk: Chunk, span: Span) -> None:
        source, offer = self._source, chunk.offer
        assert source is not None
        chunk.span = span
        self._held[span.number] = chunk
        self._held_bytes += span.nbytes
        self._request.started(Stage.POST, chunk)
        chunk.read = self._tools.lane.read(
            source.fabric.name,
            local=self._tools.storage.memory.base + span.offset,
            remote=source.layout.arena_base + offer.offset,
            nbytes=offer.nbytes,
            listener=self._listener(chunk),
        )

    def _listener(self, chunk: Chunk) -> Callable[[ReadEvent, str], None]:
        def listen(event: ReadEvent, detail: str) -> None:
            self._loop.call_soon_threadsafe(self._on_read, chunk, event, detail)

        return listen

    def _on_read(self, chunk: Chunk, event: ReadEvent, detail: str) -> None:
        if event is not ReadEvent.POSTED:
            chunk.read = None
            self._fabric.credits.give(chunk.offer.nbytes)
            self._tell_fabric(event, detail)
            if self._over:
                assert chunk.span is not None
                self._tools.storage.settle(chunk.span)
        if not self._over:
            self._request.guarded(lambda: self._moved(chunk, event, detail))

    def _tell_fabric(self, event: ReadEvent, detail: str) -> None:
        if event is ReadEvent.DONE:
            self._fabric.read_succeeded()
        elif detail.startswith(LOST):
            self._fabric.read_failed(detail, lost=True)

    def late(self, reason: str) -> None:
        """A read has missed its deadline."""
        self._fabric.read_failed(reason, lost=False)

    def _moved(self, chunk: Chunk, event: ReadEvent, detail: str) -> None:
        self._request.stopped(Stage.POST, chunk)
        if event is not ReadEvent.DONE or not chunk.posted:
            chunk.posted = True
            self._request.started(Stage.WIRE, chunk)
        if event is ReadEvent.DONE:
            self._verify(chunk)
        elif event is not ReadEvent.POSTED:
            self._spawn(lambda: self._explain(chunk, Cause.TRANSPORT_ERROR, detail))

    async def _explain(self, chunk: Chunk, cause: Cause, detail: str) -> None:
        """The peer's word goes first, or its loss: either may be why its memory gives nothing good.

        A fabric that is dead with the peer alive is told apart from a peer gone; and memory that
        prefill took back when it gave the request up, from bytes that came wrong.
        """
        assert self._source is not None
        ended = self._source.session.ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOSS_GRACE_S):
                await ended.wait()
        told = Cause.PEER_LOST if ended.is_set() else cause
        self._request.fail(self._failure(chunk, told, detail))

    # -- its digest

    def _verify(self, chunk: Chunk) -> None:
        span = chunk.span
        assert span is not None
        if self._tools.faults.zeroes(chunk.part.state_type):
            self._tools.storage.zero(span)
        found = self._tools.storage.digest_now(span) if chunk.checked else b""
        if found is None:
            self._spawn(lambda: self._digest(chunk, span))
        else:
            self._compare(chunk, found)

    async def _digest(self, chunk: Chunk, span: Span) -> None:
        found = await self._tools.storage.digest(span)
        self._request.guarded(lambda: self._compare(chunk, found))

    def _compare(self, chunk: Chunk, found: bytes) -> None:
        told = chunk.offer.digest
        if chunk.checked and found != told:
            detail = (
                f"component {chunk.part.component}, chunk {chunk.offer.chunk}: digest "
                f"{found.hex()} of what arrived, the peer's is "
                f"{told.hex() or 'none (its integrity check is off, or sampled at another rate)'}"
            )
            self._request.started(Stage.WIRE, chunk)  # while it waits for the peer's word
            self._spawn(lambda: self._explain(chunk, Cause.DIGEST_MISMATCH, detail))
            return
        self._request.stopped(Stage.WIRE, chunk)
        self._request.landed(chunk)

    @property
    def _fabric(self) -> FabricLink:
        assert self._source is not None
        return self._source.fabric

    @property
    def short_of(self) -> str:
        """What the next chunk waits for."""
        return f"{self._waiting[0].offer.nbytes} bytes wait for {self._short_of}"

    @property
    def _peer_pod(self) -> str:
        return self._source.session.peer.pod if self._source else ""

    def _failure(self, chunk: Chunk, cause: Cause, detail: str) -> TransferFailed:
        return TransferFailed(
            cause,
            stage=Stage.WIRE,
            detail=detail,
            component=chunk.part.component,
            state_type=chunk.part.state_type,
            peer_pod=self._peer_pod,
        )

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except TransferFailed as failure:
            self._request.fail(failure)
