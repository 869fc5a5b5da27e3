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
from disagg_transfer.agent.leasebook import LeaseBook
from disagg_transfer.agent.outcomes import Outcomes, Pods
from disagg_transfer.agent.relay import heard, misuse, refused, tell, told_differences
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
    Refuse,
    Reserve,
    Reserved,
)
from disagg_transfer.errors import ArenaFull, TransferFailed
from disagg_transfer.protocol import Confirmed, Failed, Landed, Offer, Pulled, Release, Want

Act = Callable[[Lease, Claim], None]
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
        decoders: Callable[[], bool],
    ) -> None:
        self._pod, self._storage, self._outcomes = pod, storage, outcomes
        self._faults, self._integrity = faults, integrity
        self._book = LeaseBook(
            pod=pod, storage=storage, outcomes=outcomes, timeouts=timeouts, decoders=decoders
        )

    @property
    def inflight(self) -> int:
        return sum(not lease.ended for lease in self._book.leases)

    @property
    def sights(self) -> tuple[Sight, ...]:
        now = asyncio.get_running_loop().time()
        return tuple(
            Sight(
                room=lease.room,
                state=lease.state,
                peer_pod=lease.claim.session.peer.pod if lease.claim else "",
                age_s=now - lease.begun_at,
                components=", ".join(
                    f"{name} pulled" if name in lease.pulled else name
                    for name in sorted(lease.seen)
                ),
            )
            for lease in self._book.leases
        )

    async def run(self) -> None:
        await self._book.run()

    # -- the engine

    def engine_registered(self, engine: Engine) -> None:
        self._book.engine = engine

    def engine_lost(self) -> None:
        self._book.lose_engine()

    def engine_unmapped(self, engine: Engine) -> None:
        self._book.settle_orphans(engine.epoch)

    async def answer(self, call: Call) -> Answer:
        match call:
            case Begin():
                self._book.begin(call.room)
            case Reserve():
                return await self._reserve(call)
            case OfferPayload():
                await self._offer(call)
            case AwaitRelease():
                await self._await_release(call)
            case Abort():
                self._abort(call)
            case Refuse():
                self._book.give_up(call.room, refused(call.detail))
            case _:
                raise misuse(f"{type(call).__name__} is a decode engine's call")
        return Done(call=call.call)

    async def _reserve(self, call: Reserve) -> Reserved:
        lease = self._book.get(call.room)
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                (span,) = await self._storage.reserve((call.nbytes,))
        except TimeoutError as error:
            raise ArenaFull(
                Cause.ARENA_FULL,
                stage=Stage.ALLOCATE,
                detail=f"no {call.nbytes} bytes free within {call.timeout_ms} ms",
            ) from error
        if lease.failure is not None or self._book.find(call.room) is not lease:
            self._storage.free(span)
            raise lease.failure or misuse(f"room {call.room} has ended")
        lease.written[span.number] = span
        return Reserved(call=call.call, extent=span.number, offset=span.offset, nbytes=span.nbytes)

    async def _offer(self, call: OfferPayload) -> None:
        lease = self._book.get(call.room)
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
            self._book.fail(lease, failure)
            raise
        if self._faults.zeroes(held.state_type):
            self._storage.zero(span)
        lease.held.append(held)
        lease.last_offered |= call.last
        lease.moved_at = asyncio.get_running_loop().time()
        self._announce(lease, held)

    async def _prepare(self, lease: Lease, call: OfferPayload, span: Span) -> Held:
        assert self._book.engine is not None
        part = self._book.engine.parts.get(call.component)
        if part is None:
            known = ", ".join(sorted(self._book.engine.parts))
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
            epoch=self._book.engine.epoch if self._book.engine else 0,
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
        lease = self._book.get(call.room)
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                while not lease.ended:
                    await lease.changed.wait()
        except TimeoutError:
            detail = f"the engine waited {call.timeout_ms} ms for the release"
            self._book.fail(lease, TransferFailed(Cause.TIMEOUT, stage=lease.stage, detail=detail))
        self._book.close(lease)
        if lease.failure is not None:
            raise lease.failure

    def _abort(self, call: Abort) -> None:
        lease = self._book.find(call.room)
        if lease is None:
            return
        self._book.fail(lease, TransferFailed(Cause.ABORTED, stage=lease.stage, detail=call.detail))
        self._book.close(lease)

    # -- decode agents

    def on_message(self, session: Session, message: Any) -> None:
        match message:
            case Want():
                self._wanted(session, message)
            case Pulled():
                component = {message.component}
                self._with_lease(
                    session, message, lambda lease, _: lease.pulled.update(component & lease.seen)
                )
            case Landed():
                self._with_lease(session, message, self._landed)
            case Release():
                self._with_lease(session, message, self._released)
            case Failed():
                self._told_failed(session, message)
            case _:
                session.close(f"{type(message).__name__} is prefill's to send")

    def _wanted(self, session: Session, want: Want) -> None:
        try:
            self._check(session, want)
            claim = Claim(session=session, request=want.request)
            lease = self._book.claim(want.room, claim)
        except TransferFailed as failure:
            tell(session, room=want.room, request=want.request, failure=failure)
            return
        if lease is not None:
            for held in lease.held:
                self._announce(lease, held)

    def _check(self, session: Session, want: Want) -> None:
        engine = self._book.engine
        if engine is None:
            raise self._book.engine_lost(Stage.BOOTSTRAP)
        if want.epoch != engine.epoch:
            detail = f"wants registration {want.epoch}, the engine's is {engine.epoch}"
            raise TransferFailed(Cause.EPOCH_MISMATCH, stage=Stage.BOOTSTRAP, detail=detail)
        if session.differences:
            raise told_differences(session)

    def _announce(self, lease: Lease, held: Held) -> None:
        if lease.claim is not None and not self._faults.withholds(held.state_type):
            lease.claim.session.send(replace(held.offer, request=lease.claim.request))

    def _with_lease(self, session: Session, message: Pulled | Landed | Release, act: Act) -> None:
        """Act on a live lease of this very request; a stale Landed is told that it is stale."""
        lease = self._book.find(message.room)
        claim = lease.claim if lease else None
        failure = misuse(f"room {message.room} is not held for this request", stage=Stage.WIRE)
        if lease and claim and claim.session is session and claim.request == message.request:
            if not lease.ended:
                act(lease, claim)
                return
            failure = lease.failure or failure
        if isinstance(message, Landed):
            tell(session, room=message.room, request=message.request, failure=failure)

    def _landed(self, lease: Lease, claim: Claim) -> None:
        if lease.landed or not lease.last_offered:
            claim.session.close(f"Landed for room {lease.room} in state {lease.state}")
            return
        lease.landed, lease.moved_at = True, asyncio.get_running_loop().time()
        lease.pulled.update(lease.seen)
        for held in lease.held:
            self._storage.free(held.span)
        claim.session.send(Confirmed(room=lease.room, request=claim.request))

    def _released(self, lease: Lease, claim: Claim) -> None:
        if not lease.landed:
            claim.session.close(f"Release for room {lease.room} in state {lease.state}")
            return
        lease.released = True
        pods = Pods(prefill=self._pod, decode=claim.session.peer.pod)
        for held in lease.held:
            self._outcomes.succeeded(held.state_type, nbytes=held.span.nbytes, pods=pods)
        lease.changed.fire()

    def _told_failed(self, session: Session, message: Failed) -> None:
        failure = heard(message, pod=session.peer.pod)
        if message.request is None:
            self._book.give_up(message.room, failure, peer=session)
        else:
            self._book.fail_claim(message.room, failure, session=session, request=message.request)

    def on_session_lost(self, session: Session, failure: TransferFailed) -> None:
        self._book.lose_session(session, failure)

    def on_peer_engine_lost(self, session: Session) -> None:
        """Decode tells each request's end by itself."""
