"""Prefill's desk: payloads are held under a lease until decode says that it has them.

A claim may come before the engine begins on a room, or after its offers. Decode asks to confirm
when its bytes have landed, and only a lease that held all along says yes; so memory may be taken
back at any failure, and nobody ever decodes what was read from it afterwards. Memory the engine
was given to write stays out of reach until the engine says, by its next call, that it stopped.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from disagg_transfer.agent.engine import Engine, Sight
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.lease import Claim, Held, Lease
from disagg_transfer.agent.outcomes import Outcomes
from disagg_transfer.agent.relay import heard, misuse, restaged, tell, told_differences
from disagg_transfer.agent.session import Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.contract import Cause, Integrity, Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.engine_messages import (
    Abort,
    Answer,
    AwaitRelease,
    Begin,
    Call,
    Done,
    OfferPayload,
    Reserve,
    Reserved,
)
from disagg_transfer.errors import ArenaFull, TransferFailed
from disagg_transfer.protocol import Confirmed, Failed, Landed, Offer, Release, Want

REMEMBER_S: Final = 60.0  # how long a failed room's late claim is still told why
MAX_CLAIMS: Final = 4096  # rooms wanted and not begun
SWEEP_S: Final = 0.25
_NO_REQUEST: Final = bytes(16)


class Prefill:
    def __init__(
        self,
        *,
        pod: str,
        storage: Storage,
        outcomes: Outcomes,
        faults: Faults,
        timeouts: Timeouts,
        integrity: Integrity,
    ) -> None:
        self._pod, self._storage, self._outcomes = pod, storage, outcomes
        self._faults, self._timeouts, self._integrity = faults, timeouts, integrity
        self._engine: Engine | None = None
        self._leases: dict[int, Lease] = {}
        self._claims: dict[int, Claim] = {}  # for rooms not begun
        self._failed: dict[int, tuple[float, TransferFailed]] = {}
        self._orphans: dict[str, list[Span]] = {}  # by the engine process that may write there

    @property
    def inflight(self) -> int:
        return sum(not lease.ended for lease in self._leases.values())

    @property
    def sights(self) -> tuple[Sight, ...]:
        now = self._now()
        return tuple(
            Sight(
                room=lease.room,
                state=lease.state,
                peer_pod=lease.claim.session.peer.pod if lease.claim else "",
                age_s=now - lease.begun_at,
                components=", ".join(sorted(lease.seen)),
            )
            for lease in self._leases.values()
        )

    async def run(self) -> None:
        """Expire what nobody comes for."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep(self._now())

    # -- the engine

    def engine_registered(self, engine: Engine) -> None:
        self._engine = engine
        for instance in [key for key in self._orphans if key != engine.instance]:
            for span in self._orphans.pop(instance):
                self._storage.settle(span)

    def engine_lost(self) -> None:
        engine, self._engine = self._engine, None
        assert engine is not None
        for lease in list(self._leases.values()):
            self._fail(lease, self._lost_engine(lease.stage), engine=engine)
            for span in lease.written.values():
                self._storage.quarantine(span)
            self._orphans.setdefault(engine.instance, []).extend(lease.written.values())
        self._leases.clear()
        for room, claim in list(self._claims.items()):
            tell(
                claim.session,
                room=room,
                request=claim.request,
                failure=self._lost_engine(Stage.QUEUE),
            )
        self._claims.clear()

    async def answer(self, call: Call) -> Answer:
        match call:
            case Begin():
                self._begin(call.room)
            case Reserve():
                return await self._reserve(call)
            case OfferPayload():
                await self._offer(call)
            case AwaitRelease():
                await self._await_release(call)
            case Abort():
                self._abort(call)
            case _:
                raise misuse(f"{type(call).__name__} is a decode engine's call")
        return Done(call=call.call)

    def _begin(self, room: int) -> None:
        if room in self._leases:
            raise misuse(f"room {room} is in flight; every request needs a room of its own")
        _, failure = self._failed.pop(room, (0.0, None))
        if failure is not None:
            raise failure
        lease = Lease(room, self._now(), self._now(), claim=self._claims.pop(room, None))
        self._leases[room] = lease

    async def _reserve(self, call: Reserve) -> Reserved:
        lease = self._lease(call.room)
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                (span,) = await self._storage.reserve((call.nbytes,))
        except TimeoutError as error:
            raise ArenaFull(
                Cause.ARENA_FULL,
                stage=Stage.ALLOCATE,
                detail=f"no {call.nbytes} bytes free within {call.timeout_ms} ms",
            ) from error
        if lease.failure is not None or self._leases.get(call.room) is not lease:
            self._storage.free(span)
            raise lease.failure or misuse(f"room {call.room} has ended")
        lease.written[span.number] = span
        return Reserved(call=call.call, extent=span.number, offset=span.offset, nbytes=span.nbytes)

    async def _offer(self, call: OfferPayload) -> None:
        lease = self._lease(call.room)
        span = lease.written.pop(call.extent, None)
        if span is None:
            raise misuse(f"extent {call.extent} is not one that room {call.room} writes")
        try:
            if lease.failure is not None:
                raise lease.failure
            held = await self._prepare(lease, call, span)
            if lease.failure is not None:
                raise lease.failure
        except TransferFailed as failure:
            self._storage.free(span)
            self._fail(lease, failure)
            raise
        if self._faults.zeroes(held.state_type):
            self._storage.zero(span)
        lease.held.append(held)
        lease.last_offered |= call.last
        lease.moved_at = self._now()
        self._announce(lease, held)

    async def _prepare(self, lease: Lease, call: OfferPayload, span: Span) -> Held:
        assert self._engine is not None
        part = self._engine.parts.get(call.component)
        if part is None:
            known = ", ".join(sorted(self._engine.parts))
            raise misuse(f"component {call.component!r} is not registered; registered: {known}")
        if call.component in lease.seen or lease.last_offered:
            raise misuse(f"component {call.component} is offered again, or after the last offer")
        wanted = call.items * part.item_bytes
        if span.nbytes != wanted:
            cause = Cause.SHORT_PAYLOAD if span.nbytes < wanted else Cause.LONG_PAYLOAD
            raise TransferFailed(
                cause,
                stage=Stage.NOTIFY,
                state_type=part.state_type,
                component=part.name,
                detail=f"{call.items} items of {part.item_bytes} bytes are {wanted} bytes, "
                f"the extent has {span.nbytes}",
            )
        lease.seen.add(call.component)
        index, lease.next_index = lease.next_index, lease.next_index + 1
        always = self._integrity is Integrity.ALWAYS
        digest = await self._storage.digest(span) if always else b""
        offer = Offer(
            room=lease.room,
            request=_NO_REQUEST,
            epoch=self._engine.epoch if self._engine else 0,
            index=index,
            last=call.last,
            component=call.component,
            chunk=0,
            chunks=1,
            items=call.items,
            offset=span.offset,
            nbytes=span.nbytes,
            digest=digest,
            aux=call.aux,
        )
        return Held(offer=offer, state_type=part.state_type, span=span)

    async def _await_release(self, call: AwaitRelease) -> None:
        lease = self._lease(call.room)
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                while not lease.ended:
                    await lease.changed.wait()
        except TimeoutError:
            detail = f"the engine waited {call.timeout_ms} ms for the release"
            self._fail(lease, TransferFailed(Cause.TIMEOUT, stage=lease.stage, detail=detail))
        self._close(lease)
        if lease.failure is not None:
            raise lease.failure

    def _abort(self, call: Abort) -> None:
        lease = self._leases.get(call.room)
        if lease is None:
            return
        self._fail(lease, TransferFailed(Cause.ABORTED, stage=lease.stage, detail=call.detail))
        self._close(lease)

    def _close(self, lease: Lease) -> None:
        """The engine has learned how the room ended, and writes no more of it."""
        for span in lease.written.values():
            self._storage.free(span)
        lease.written.clear()
        if self._leases.get(lease.room) is lease:
            del self._leases[lease.room]

    # -- decode agents

    def on_message(self, session: Session, message: Any) -> None:
        match message:
            case Want():
                self._wanted(session, message)
            case Landed():
                self._with_lease(session, message, self._landed)
            case Release():
                self._with_lease(session, message, self._released)
            case Failed():
                self._told_failed(session, message)
            case _:
                session.close(f"{type(message).__name__} is prefill's to send")

    def _wanted(self, session: Session, want: Want) -> None:
        claim = Claim(session=session, request=want.request, at=self._now())
        failure = self._obstacle(session, want)
        if failure is not None:
            tell(claim.session, room=want.room, request=claim.request, failure=failure)
            return
        lease = self._leases.get(want.room)
        if lease is None:
            self._claims[want.room] = claim
            return
        lease.claim, lease.moved_at = claim, self._now()
        for held in lease.held:
            self._announce(lease, held)

    def _obstacle(self, session: Session, want: Want) -> TransferFailed | None:
        if self._engine is None:
            return self._lost_engine(Stage.BOOTSTRAP)
        if want.epoch != self._engine.epoch:
            detail = f"wants registration {want.epoch}, the engine's is {self._engine.epoch}"
            return TransferFailed(Cause.EPOCH_MISMATCH, stage=Stage.BOOTSTRAP, detail=detail)
        if session.differences:
            return told_differences(session)
        if want.room in self._failed:
            return self._failed.pop(want.room)[1]
        return self._taken(want.room)

    def _taken(self, room: int) -> TransferFailed | None:
        lease = self._leases.get(room)
        claim = lease.claim if lease else self._claims.get(room)
        if claim is not None or (lease is not None and lease.ended):
            pod = claim.session.peer.pod if claim else "nobody"
            return misuse(f"room {room} is claimed already, by {pod}", stage=Stage.QUEUE)
        if lease is None and len(self._claims) >= MAX_CLAIMS:
            return misuse(f"{MAX_CLAIMS} rooms are wanted and not begun", stage=Stage.QUEUE)
        return None

    def _announce(self, lease: Lease, held: Held) -> None:
        if lease.claim is not None and not self._faults.withholds(held.state_type):
            lease.claim.session.send(replace(held.offer, request=lease.claim.request))

    def _with_lease(
        self, session: Session, message: Landed | Release, act: Callable[[Lease, Claim], None]
    ) -> None:
        lease = self._leases.get(message.room)
        claim = lease.claim if lease else None
        if lease and claim and claim.session is session and claim.request == message.request:
            if not lease.ended:
                act(lease, claim)
                return
            failure = lease.failure
        else:
            failure = None
        if isinstance(message, Landed):
            claim = Claim(session=session, request=message.request, at=0.0)
            stale = misuse(f"room {message.room} is not held for this request", stage=Stage.WIRE)
            tell(claim.session, room=message.room, request=claim.request, failure=failure or stale)

    def _landed(self, lease: Lease, claim: Claim) -> None:
        if lease.landed or not lease.last_offered:
            claim.session.close(f"Landed for room {lease.room} in state {lease.state}")
            return
        lease.landed, lease.moved_at = True, self._now()
        for held in lease.held:
            self._storage.free(held.span)
        claim.session.send(Confirmed(room=lease.room, request=claim.request))

    def _released(self, lease: Lease, claim: Claim) -> None:
        if not lease.landed:
            claim.session.close(f"Release for room {lease.room} in state {lease.state}")
            return
        lease.released = True
        for held in lease.held:
            self._outcomes.succeeded(held.state_type, held.span.nbytes)
        lease.changed.fire()

    def _told_failed(self, session: Session, message: Failed) -> None:
        failure = heard(message, pod=session.peer.pod)
        lease = self._leases.get(message.room)
        claim = lease.claim if lease else self._claims.get(message.room)
        if claim is None or claim.session is not session or claim.request != message.request:
            return
        if lease is not None:
            self._fail(lease, failure, relay=False)
        else:
            del self._claims[message.room]
            self._failed[message.room] = (self._now(), failure)
            self._record(message.room, failure, session.peer.pod, self._engine)

    def on_session_lost(self, session: Session, failure: TransferFailed) -> None:
        for lease in list(self._leases.values()):
            if lease.claim is not None and lease.claim.session is session and not lease.ended:
                self._fail(lease, restaged(failure, lease.stage), relay=False)
        for room in [room for room, claim in self._claims.items() if claim.session is session]:
            del self._claims[room]

    def on_peer_engine_lost(self, session: Session) -> None:
        """Decode tells each request's end by itself."""

    # -- ends

    def _fail(
        self,
        lease: Lease,
        failure: TransferFailed,
        *,
        relay: bool = True,
        engine: Engine | None = None,
    ) -> None:
        if lease.ended:
            return
        lease.failure = failure
        if not lease.landed:
            for held in lease.held:
                self._storage.free(held.span)
        if lease.claim is None:
            self._failed[lease.room] = (self._now(), failure)
        elif relay:
            tell(lease.claim.session, room=lease.room, request=lease.claim.request, failure=failure)
        pod = lease.claim.session.peer.pod if lease.claim else ""
        self._record(lease.room, failure, pod, engine or self._engine)
        lease.changed.fire()

    def _record(
        self, room: int, failure: TransferFailed, decode_pod: str, engine: Engine | None
    ) -> None:
        self._outcomes.failed(
            failure,
            room=room,
            state_types=engine.state_types if engine else (),
            prefill_pod=self._pod,
            decode_pod=decode_pod,
        )

    def _sweep(self, now: float) -> None:
        for lease in list(self._leases.values()):
            limit, failure = self._patience(lease)
            if not lease.ended and lease.last_offered and now - lease.moved_at > limit:
                self._fail(lease, failure)
            if lease.ended and not lease.written and now - lease.moved_at > limit + REMEMBER_S:
                del self._leases[lease.room]
        for room, (at, _) in list(self._failed.items()):
            if now - at > REMEMBER_S:
                del self._failed[room]

    def _patience(self, lease: Lease) -> tuple[float, TransferFailed]:
        if lease.claim is None:
            limit = self._timeouts.limit(Stage.QUEUE)
            detail = f"offered, and no decode agent claimed the room within {limit:g} s"
            return limit, TransferFailed(Cause.TIMEOUT, stage=Stage.QUEUE, detail=detail)
        stages = (Stage.NOTIFY, Stage.ALLOCATE, Stage.POST, Stage.WIRE, Stage.SCATTER)
        limit = sum(self._timeouts.limit(stage) for stage in stages) + 5.0
        detail = f"decode has neither taken it nor failed within {limit:g} s"
        return limit, TransferFailed(
            Cause.TIMEOUT,
            stage=lease.stage,
            detail=detail,
            peer_pod=lease.claim.session.peer.pod,
        )

    def _lease(self, room: int) -> Lease:
        lease = self._leases.get(room)
        if lease is None:
            raise misuse(f"room {room} has not begun, or has ended")
        return lease

    def _lost_engine(self, stage: Stage) -> TransferFailed:
        detail = f"the engine of prefill pod {self._pod} is not connected to its agent"
        return TransferFailed(Cause.ENGINE_LOST, stage=stage, detail=detail)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
