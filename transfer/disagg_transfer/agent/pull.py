"""One request on the decode side, from its bootstrap to its bytes.

A loop over events with a clock per stage. Whatever happens, the extents end in one of three ways:
handed to the engine, freed, or quarantined until the NIXL read into them is in a terminal state.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from disagg_transfer.accounting import Ledger, Part
from disagg_transfer.agent.control import Dialer
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.relay import tell
from disagg_transfer.agent.session import Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.contract import Cause, Integrity, Stage
from disagg_transfer.deadlines import Due, StageClocks, Timeouts, overdue
from disagg_transfer.errors import TransferFailed
from disagg_transfer.lane import Lane, Read, ReadEvent
from disagg_transfer.protocol import Confirmed, Landed, Layout, Offer, Pulled, Want

# The control connection of a killed peer closes within this of NIXL's own error.
_LOSS_GRACE_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every pull uses."""

    lane: Lane
    storage: Storage
    dialer: Dialer
    faults: Faults
    timeouts: Timeouts
    integrity: Integrity


@dataclass(frozen=True, slots=True)
class Reached:
    session: Session


@dataclass(frozen=True, slots=True)
class Allocated:
    pass


@dataclass(frozen=True, slots=True)
class Moved:
    component: str
    event: ReadEvent
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    component: str


Work = Callable[[], Coroutine[Any, Any, None]]
Event = Reached | Allocated | Moved | Verified | Offer | Confirmed | TransferFailed


class Pull:
    def __init__(
        self, *, room: int, request: bytes, peer: str, parts: Mapping[str, Part], tools: Tools
    ) -> None:
        self.room, self.request, self.peer = room, request, peer
        self.ledger = Ledger(parts)
        self.session: Session | None = None
        self._layout: Layout | None = None  # of the engine that this request began with
        self.spans: dict[str, Span] = {}
        self.first_offer_at: float | None = None
        self._tools = tools
        self._clocks = StageClocks()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._offers: dict[str, Offer] = {}
        self._reads: dict[str, Read] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._allocated = False
        self.arrived = False  # whole, and confirmed
        self._landed = False
        self._over = False
        self._loop = asyncio.get_running_loop()

    @property
    def stage(self) -> Stage:
        if self.session is None:
            return Stage.BOOTSTRAP
        if not self._offers:
            return Stage.QUEUE
        if not self._allocated:
            return Stage.ALLOCATE
        return Stage.NOTIFY if self.ledger.unoffered else Stage.WIRE

    @property
    def peer_pod(self) -> str:
        return self.session.peer.pod if self.session else ""

    def post(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Return with every byte in `spans`, or raise TransferFailed with nothing kept."""
        self._start(Stage.BOOTSTRAP)
        self._spawn(self._bootstrap)
        try:
            while not self.arrived:
                self._apply(await self._next())
        except TransferFailed as failure:
            self._give_up(failure)
            raise
        finally:
            self._over = True
            for task in self._tasks:
                task.cancel()

    async def _next(self) -> Event:
        due = self._clocks.earliest
        try:
            async with asyncio.timeout_at(due.at if due else None):
                return await self._events.get()
        except TimeoutError:
            assert due is not None
            raise await self._late(due) from None

    def _apply(self, event: Event) -> None:
        match event:
            case Reached(session):
                self._reached(session)
            case Offer():
                self._offered(event)
            case Allocated():
                self._clocks.stop(Stage.ALLOCATE)
                self._allocated = True
                for offer in self._offers.values():
                    self._fetch(offer)
            case Moved(component, kind, detail):
                self._moved(component, kind, detail)
            case Verified(component):
                self._arrived(component)
            case Confirmed():
                self.arrived = True
            case TransferFailed():
                raise event

    # -- stages

    async def _bootstrap(self) -> None:
        self.post(Reached(await self._tools.dialer.reach(self.peer)))

    def _reached(self, session: Session) -> None:
        self._clocks.stop(Stage.BOOTSTRAP)
        if session.ended.is_set() or session.layout is None:
            raise self._failure(Cause.PEER_LOST, "the session ended as the request began")
        self.session, self._layout = session, session.layout
        self._start(Stage.QUEUE)
        session.send(Want(room=self.room, request=self.request, epoch=session.layout.epoch))

    def _offered(self, offer: Offer) -> None:
        part = self.ledger.parts.get(offer.component)
        if part is not None and self._tools.faults.withholds(part.state_type):
            return
        fault = self._misplaced(offer) or self.ledger.offer(offer)
        if isinstance(fault, TransferFailed):
            raise fault
        if fault is not None:
            raise self._failure(
                fault.cause, fault.detail, component=fault.component, state_type=fault.state_type
            )
        if not self._offers:
            self._first_offer()
        self._clocks.stop(Stage.NOTIFY, offer.component)
        self._offers[offer.component] = offer
        if self._allocated:
            self._fetch(offer)

    def _first_offer(self) -> None:
        self.first_offer_at = self._loop.time()
        self._clocks.stop(Stage.QUEUE)
        self._start(Stage.ALLOCATE)
        for part in self.ledger.parts.values():
            self._start(Stage.NOTIFY, part)
        self._spawn(self._allocate)

    def _misplaced(self, offer: Offer) -> TransferFailed | None:
        layout = self._layout
        assert layout is not None
        if offer.epoch != layout.epoch:
            detail = f"offer of registration {offer.epoch}, the request is of {layout.epoch}"
            return self._failure(Cause.EPOCH_MISMATCH, detail, component=offer.component)
        if offer.offset + offer.nbytes > layout.arena_bytes:
            detail = f"offset {offer.offset} + {offer.nbytes} is past {layout.arena_bytes}"
            return self._failure(Cause.PROTOCOL_ERROR, detail, component=offer.component)
        return None

    async def _allocate(self) -> None:
        parts = self.ledger.parts
        spans = await self._tools.storage.reserve([part.nbytes for part in parts.values()])
        self.spans = dict(zip(parts, spans, strict=True))
        self.post(Allocated())

    def _fetch(self, offer: Offer) -> None:
        if not offer.nbytes:
            self._arrived(offer.component)
            return
        assert self.session is not None
        assert self._layout is not None
        part, span = self.ledger.parts[offer.component], self.spans[offer.component]
        self._start(Stage.POST, part)
        self._reads[offer.component] = self._tools.lane.read(
            self.session.fabric_name,
            local=self._tools.storage.memory.base + span.offset,
            remote=self._layout.arena_base + offer.offset,
            nbytes=offer.nbytes,
            listener=self._listener(offer.component),
        )

    def _listener(self, component: str) -> Callable[[ReadEvent, str], None]:
        def listen(event: ReadEvent, detail: str) -> None:
            self._loop.call_soon_threadsafe(self._on_read, component, event, detail)

        return listen

    def _on_read(self, component: str, event: ReadEvent, detail: str) -> None:
        if event is not ReadEvent.POSTED:
            del self._reads[component]
            if self._over:
                self._tools.storage.settle(self.spans[component])
        if not self._over:
            self.post(Moved(component, event, detail))

    def _moved(self, component: str, event: ReadEvent, detail: str) -> None:
        self._clocks.stop(Stage.POST, component)
        if event is ReadEvent.POSTED:
            self._start(Stage.WIRE, self.ledger.parts[component])
        elif event is ReadEvent.DONE:
            self._spawn(lambda: self._verify(component))
        else:
            self._clocks.stop(Stage.WIRE, component)
            self._start(Stage.WIRE, self.ledger.parts[component])
            self._spawn(lambda: self._explain(component, detail))

    async def _explain(self, component: str, detail: str) -> None:
        """Peer gone, or fabric dead with the peer alive: the control channel tells them apart."""
        assert self.session is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOSS_GRACE_S):
                await self.session.ended.wait()
        cause = Cause.PEER_LOST if self.session.ended.is_set() else Cause.TRANSPORT_ERROR
        part = self.ledger.parts[component]
        self.post(self._failure(cause, detail, component=component, state_type=part.state_type))

    async def _verify(self, component: str) -> None:
        offer, span = self._offers[component], self.spans[component]
        part = self.ledger.parts[component]
        if self._tools.faults.zeroes(part.state_type):
            self._tools.storage.zero(span)
        if self._tools.integrity is Integrity.ALWAYS:
            found = await self._tools.storage.digest(span)
            if found != offer.digest:
                told = offer.digest.hex() or "none (its integrity check is off)"
                self.post(
                    self._failure(
                        Cause.DIGEST_MISMATCH,
                        f"component {component}: digest {found.hex()} of what arrived, "
                        f"the peer's is {told}",
                        component=component,
                        state_type=part.state_type,
                    )
                )
                return
        self.post(Verified(component))

    def _arrived(self, component: str) -> None:
        self._clocks.stop(Stage.WIRE, component)
        self.ledger.arrived(component)
        assert self.session is not None
        if not self.ledger.complete:
            self.session.send(Pulled(room=self.room, request=self.request, component=component))
        elif not self._landed:
            self._landed = True
            self._start(Stage.WIRE)
            self.session.send(Landed(room=self.room, request=self.request))

    # -- ends

    def _give_up(self, failure: TransferFailed) -> None:
        for component, span in self.spans.items():
            read = self._reads.get(component)
            if read is None:
                self._tools.storage.free(span)
            else:
                self._tools.lane.abandon(read)
                self._tools.storage.quarantine(span, writer=f"a read from {self.peer_pod}")
        self.tell(failure)

    def tell(self, failure: TransferFailed) -> None:
        """The peer learns of a failure that is not its own word."""
        if self.session is not None:
            tell(self.session, room=self.room, request=self.request, failure=failure)

    async def _late(self, due: Due) -> TransferFailed:
        if due.stage is Stage.BOOTSTRAP:
            return await self._tools.dialer.obstacle(self.peer, within_s=due.limit_s)
        part = self.ledger.parts.get(due.component or "")
        missing = ", ".join(part.component for part in self.ledger.outstanding)
        return self._failure(
            Cause.ARENA_FULL if due.stage is Stage.ALLOCATE else Cause.TIMEOUT,
            overdue(due) + (f"; not arrived: {missing}" if missing else ""),
            stage=due.stage,
            component=due.component,
            state_type=part.state_type if part else None,
        )

    def _failure(
        self,
        cause: Cause,
        detail: str,
        *,
        stage: Stage | None = None,
        component: str | None = None,
        state_type: str | None = None,
    ) -> TransferFailed:
        return TransferFailed(
            cause,
            stage=stage or self.stage,
            detail=detail,
            component=component,
            state_type=state_type,
            peer_pod=self.peer_pod,
        )

    def _start(self, stage: Stage, part: Part | None = None) -> None:
        self._clocks.start(
            stage,
            part.component if part else None,
            now=self._loop.time(),
            limit_s=self._tools.timeouts.limit(stage, part.state_type if part else None),
        )

    def _spawn(self, work: Work) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Work) -> None:
        try:
            await work()
        except TransferFailed as failure:
            self.post(failure)
