"""One request's pull from one source: a prefill rank that has all of its state, or a share.

Every event is applied at once, under a clock per stage. The engine gets each chunk as it lands;
the pull counts only once it is whole: every item there is, and each chunk's bytes vouched for by
its digest or by prefill's word, at the end, that its lease held all along.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from disagg_transfer.accounting import Ledger, Part
from disagg_transfer.agent.landing import Chunk, Landing, Source, Tools
from disagg_transfer.agent.relay import heard, tell
from disagg_transfer.agent.session import Session
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.deadlines import Due, StageClocks, overdue
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Confirmed, Failed, Landed, Layout, Offer, Pulled, Release, Want


class Watcher(Protocol):
    """The request that a pull is a part of."""

    def deliver(self, pull: "Pull", chunks: Sequence[Chunk]) -> None: ...

    def completed(self) -> None: ...

    def fail(self, failure: TransferFailed) -> None: ...


class Pull:
    def __init__(
        self,
        *,
        room: int,
        session: Session,
        layout: Layout,  # of the engine that the request begins with
        parts: Mapping[str, Part],
        tools: Tools,
        begun_at: float,
        request: Watcher,
    ) -> None:
        self.room, self.session = room, session
        self.request = secrets.token_bytes(16)
        self.ledger = Ledger(parts)
        self.first_offer_at: float | None = None
        self.whole = False
        self.failure: TransferFailed | None = None
        self._layout = layout
        self._tools, self._watcher = tools, request
        self._loop = asyncio.get_running_loop()
        self._clocks = StageClocks()
        self._timer: asyncio.TimerHandle | None = None
        self._landing = Landing(self, tools=tools, begun_at=begun_at)
        self._ready: list[Chunk] = []  # to be delivered
        self._flushing = False
        self._with_engine: set[int] = set()  # extents
        self._unchecked = self._released = False
        self._usable = False  # the request is whole, not this share of it alone

    @property
    def over(self) -> bool:
        return self._released or self.failure is not None

    @property
    def holds_memory(self) -> bool:
        """The engine may still read chunks of it, though it has failed."""
        return bool(self._with_engine)

    @property
    def stage(self) -> Stage:
        if self.whole:
            return Stage.SCATTER
        if self.first_offer_at is None:
            return Stage.QUEUE
        if self._landing.is_waiting:
            return Stage.ALLOCATE
        return Stage.NOTIFY if self.ledger.unoffered else Stage.WIRE

    @property
    def peer_pod(self) -> str:
        return self.session.peer.pod

    def begin(self) -> None:
        self.guarded(self._want)

    def guarded(self, step: Callable[[], None]) -> None:
        """Take one step that an event from outside has called for."""
        if self.over:
            return
        try:
            step()
        except TransferFailed as failure:
            self.fail(failure)
        else:
            self._arm()

    # -- what prefill says

    def _want(self) -> None:
        fabric = self.session.fabric
        known = fabric is not None and self.session.layout is self._layout
        if fabric is None or not known or self.session.ended.is_set():
            raise self._failure(Cause.PEER_LOST, "the session ended as the request began")
        self._landing.begin(Source(session=self.session, layout=self._layout, fabric=fabric))
        self._start(Stage.QUEUE)
        have = {part.component: part.have for part in self.ledger.parts.values() if part.have}
        want = Want(room=self.room, request=self.request, epoch=self._layout.epoch, have=have)
        self.session.send(want)

    def on_message(self, message: Offer | Confirmed | Failed) -> None:
        match message:
            case Offer():
                self.guarded(lambda: self._offered(message))
            case Confirmed():
                self.guarded(self._confirmed)
            case Failed():
                self.fail(heard(message, pod=self.peer_pod), relay=False)

    def _offered(self, offer: Offer) -> None:
        part = self.ledger.parts.get(offer.component)
        if part is not None and self._tools.faults.withholds(part.state_type):
            return
        self._check(offer)
        if self.first_offer_at is None:
            self.first_offer_at = self._loop.time()
            self._clocks.stop(Stage.QUEUE)
        self._progress()
        part = self.ledger.parts[offer.component]
        if self.ledger.needless(offer):
            self._arrived(offer)
        else:
            self._landing.fetch(offer, part)

    def _check(self, offer: Offer) -> None:
        if offer.epoch != self._layout.epoch:
            detail = f"offer of registration {offer.epoch}, the request is of {self._layout.epoch}"
            raise self._failure(Cause.EPOCH_MISMATCH, detail, component=offer.component)
        if offer.offset + offer.nbytes > self._layout.arena_bytes:
            detail = f"offset {offer.offset} + {offer.nbytes} is past {self._layout.arena_bytes}"
            raise self._failure(Cause.PROTOCOL_ERROR, detail, component=offer.component)
        fault = self.ledger.offer(offer)
        if fault is not None:
            raise self._failure(
                fault.cause, fault.detail, component=fault.component, state_type=fault.state_type
            )

    def _progress(self) -> None:
        """What is still to be offered may take its time again: the request got somewhere."""
        unoffered = {part.component for part in self.ledger.unoffered}
        for name, part in self.ledger.parts.items():
            if name in unoffered:
                self._start(Stage.NOTIFY, part)
            else:
                self._clocks.stop(Stage.NOTIFY, name)

    # -- what its chunks do

    def started(self, stage: Stage, chunk: Chunk) -> None:
        self._start(stage, chunk.part, offer=chunk.offer.index)

    def stopped(self, stage: Stage, chunk: Chunk) -> None:
        self._clocks.stop(stage, chunk.offer.index)

    def landed(self, chunk: Chunk) -> None:
        assert chunk.span is not None
        self._unchecked |= not chunk.checked
        self._ready.append(chunk)
        self._with_engine.add(chunk.span.number)
        self._arrived(chunk.offer)
        if not self._usable and not self._flushing:
            # What else lands in this turn of the loop goes with it.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _arrived(self, offer: Offer) -> None:
        self.ledger.arrived(offer)
        if not self.ledger.complete:
            pulled = Pulled(room=self.room, request=self.request, index=offer.index)
            self.session.send(pulled)
            self._progress()
            return
        landed = Landed(room=self.room, request=self.request, confirm=self._unchecked)
        if self._unchecked:
            self.session.send(landed)
            self._start(Stage.WIRE)
        else:
            self._complete()
            self._say_soon(landed)

    def _confirmed(self) -> None:
        if self.ledger.complete:
            self._clocks.stop(Stage.WIRE)
            self._complete()

    def _complete(self) -> None:
        self.whole = True
        self._watcher.completed()

    def await_release(self) -> None:
        """The whole request is there: from now on the engine is late if it does not release it."""
        self._usable = True
        self.guarded(lambda: self._start(Stage.SCATTER))

    def _flush(self) -> None:
        self._flushing = False
        if not self._usable and not self.over and self._ready:
            self._start(Stage.SCATTER)
            self._arm()
            self._watcher.deliver(self, self.take_ready())

    def take_ready(self) -> tuple[Chunk, ...]:
        ready, self._ready = tuple(self._ready), []
        return ready

    # -- what the engine says

    def held_of(self, numbers: Collection[int]) -> set[int]:
        """Those of some extents that the engine has of this pull."""
        return self._with_engine.intersection(numbers)

    def give_back(self, numbers: set[int]) -> None:
        """The engine has scattered these, which it had."""
        self.guarded(lambda: self._give_back(numbers))

    def _give_back(self, numbers: set[int]) -> None:
        self._with_engine -= numbers
        if self._with_engine or self._usable:
            self._start(Stage.SCATTER)
        else:
            self._clocks.stop(Stage.SCATTER)
        self._progress()
        self._landing.give_back(numbers)

    def _say_soon(self, message: Landed | Release) -> None:
        """After what the engine is told in this turn of the loop: it waits, the peer does not."""
        self._loop.call_soon(self.session.send, message)

    def release(self) -> None:
        """Everything is scattered, of every source."""
        self._say_soon(Release(room=self.room, request=self.request))
        self._released = True
        self._stop()
        self.close()

    def close(self) -> None:
        """The engine touches no chunk any more; only of what is over."""
        numbers, self._with_engine = self._with_engine, set()
        self._landing.give_back(numbers)

    # -- ends

    def fail(self, failure: TransferFailed, *, relay: bool = True) -> None:
        """The peer learns of it, unless it is the peer's own word."""
        if self.over:
            return
        self.failure = failure
        undelivered = {chunk.span.number for chunk in self.take_ready() if chunk.span}
        self._with_engine -= undelivered
        self._landing.give_up(with_engine=self._with_engine)
        self._stop()
        if relay:
            tell(self.session, room=self.room, request=self.request, failure=failure)
        self._watcher.fail(failure)

    def _stop(self) -> None:
        self._clocks.stop_all()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """One timer, for what is due first; it looks again if that has moved away meanwhile."""
        due = self._clocks.earliest
        if due is None or (self._timer is not None and self._timer.when() <= due.at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due.at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        due = self._clocks.earliest
        if due is None or self.over:
            return
        if due.at > self._loop.time():
            self._arm()
        else:
            self.fail(self._late(due))

    def _late(self, due: Due) -> TransferFailed:
        part = self.ledger.parts.get(due.component or "")
        if part is not None and due.stage in (Stage.POST, Stage.WIRE):
            self._landing.late(overdue(due))
        missing = ", ".join(part.component for part in self.ledger.outstanding)
        short_of = f": {self._landing.short_of}" if due.stage is Stage.ALLOCATE else ""
        return self._failure(
            Cause.ARENA_FULL if due.stage is Stage.ALLOCATE else Cause.TIMEOUT,
            overdue(due) + short_of + (f"; not arrived: {missing}" if missing else ""),
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

    def _start(self, stage: Stage, part: Part | None = None, *, offer: int | None = None) -> None:
        self._clocks.start(
            stage,
            part.component if part else None,
            now=self._loop.time(),
            limit_s=self._tools.timeouts.limit(stage, part.state_type if part else None),
            offer=offer,
        )
