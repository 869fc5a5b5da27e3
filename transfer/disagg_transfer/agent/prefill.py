"""Prefill's desk: chunks are held under a lease until decode says that it has them.

A claim may come before the engine begins on a room, or after its offers. What decode has is freed
chunk by chunk. Bytes that no digest vouches for count only once decode has asked, at the end,
whether the lease held all along; so memory may be taken back at any failure, and nobody ever
decodes what was read from it afterwards. Memory the engine was given to write stays out of reach
until the engine offers it or says that it stopped.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from disagg_transfer.agent.engine import Engine, Send, Sight
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.lease import Claim, Lease
from disagg_transfer.agent.leasebook import LeaseBook
from disagg_transfer.agent.offers import Offers
from disagg_transfer.agent.outcomes import Outcomes, Pods
from disagg_transfer.agent.relay import heard, misuse, refused, tell, told_differences
from disagg_transfer.agent.session import Session
from disagg_transfer.agent.shares import Shares
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.engine_messages import (
    Abort,
    Answer,
    AskWanted,
    AwaitRelease,
    Begin,
    Call,
    Done,
    OfferPayload,
    Refuse,
    Reserve,
    Reserved,
    ReservedExtent,
    Wanted,
    Word,
)
from disagg_transfer.errors import ArenaFull, TransferFailed
from disagg_transfer.integrity import Sampling
from disagg_transfer.limits import CreditLimits
from disagg_transfer.protocol import Failed, Landed, Pulled, Release, Want

Act = Callable[[Lease, Claim], None]
_log = logging.getLogger(__name__)


class Prefill:
    def __init__(
        self,
        *,
        pod: str,
        storage: Storage,
        outcomes: Outcomes,
        faults: Faults,
        timeouts: Timeouts,
        integrity: Sampling,
        limits: CreditLimits,
        decoders: Callable[[], int],
    ) -> None:
        self._pod, self._storage, self._outcomes = pod, storage, outcomes
        self._book = LeaseBook(
            pod=pod, storage=storage, outcomes=outcomes, timeouts=timeouts, decoders=decoders
        )
        self._shares = Shares(self._book, storage=storage, limits=limits, decoders=decoders)
        self._offers = Offers(self._book, storage=storage, faults=faults, integrity=integrity)

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
                peer_pod=lease.decode_pod,
                age_s=now - lease.begun_at,
                components=", ".join(
                    f"{name} pulled" if name in lease.pulled else name
                    for name in sorted(lease.tallies)
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

    def answer_now(self, call: Call) -> Answer | None:
        match call:
            case Begin():
                return self._begin(call)
            case Reserve():
                return self._reserve_now(call)
            case AskWanted():
                return self._tell_wanted(call)
            case Abort():
                self._abort(call)
            case Refuse():
                self._book.give_up(call.room, refused(call.detail))
            case AwaitRelease():
                return None
            case _:
                raise misuse(f"{type(call).__name__} is a decode engine's call")
        return Done(call=call.call)

    def answer(self, call: Call, send: Send) -> Coroutine[Any, Any, None]:
        assert isinstance(call, Reserve | AwaitRelease)
        lease = self._book.get(call.room)
        if isinstance(call, Reserve):
            return self._reserve(lease, call, send)
        return self._await_release(lease, call, send)

    def take(self, word: Word) -> None:
        """An offer that cannot be had fails its room; the engine learns it by its next call."""
        lease = self._book.find(word.room) if isinstance(word, OfferPayload) else None
        if lease is None or not isinstance(word, OfferPayload):
            _log.warning("%s of no room under way is ignored", type(word).__name__)
            return
        span = lease.written.pop(word.extent, None)
        try:
            if span is None:
                raise misuse(f"extent {word.extent} is not one that room {word.room} writes")
            if lease.failure is not None:
                raise lease.failure
            self._offers.take(lease, word, span)
        except TransferFailed as failure:
            if span is not None:
                self._storage.free(span)
            self._book.fail(lease, failure)

    def _tell_wanted(self, call: AskWanted) -> Wanted:
        lease = self._book.get(call.room)
        if lease.failure is not None:
            raise lease.failure
        return Wanted(call=call.call, have=lease.have)

    def _begin(self, call: Begin) -> Reserved:
        """With the memory the engine asks for, where it is free at once."""
        self._book.begin(call.room)
        lease = self._book.get(call.room)
        spans: tuple[Span, ...] | None = None
        with contextlib.suppress(ArenaFull):  # told to whoever asks for it in earnest
            spans = self._free_now(lease, call.sizes)
        return _reserved(call.call, lease, spans or ())

    def _reserve_now(self, call: Reserve) -> Reserved | None:
        lease = self._book.get(call.room)
        if lease.failure is not None:
            raise lease.failure
        spans = self._free_now(lease, call.sizes)
        return None if spans is None else _reserved(call.call, lease, spans)

    def _free_now(self, lease: Lease, sizes: Sequence[int]) -> tuple[Span, ...] | None:
        """What is free at once, and within the share of the request's decode pod."""
        allowed = self._shares.allow(lease, sum(sizes))
        return self._storage.reserve_now(sizes) if allowed else None

    async def _reserve(self, lease: Lease, call: Reserve, send: Send) -> None:
        spans = await self._wait_for_room(lease, call)
        if lease.failure is not None or self._book.find(call.room) is not lease:
            for span in spans:
                self._storage.free(span)
            raise lease.failure or misuse(f"room {call.room} has ended")
        send(_reserved(call.call, lease, spans))

    async def _wait_for_room(self, lease: Lease, call: Reserve) -> tuple[Span, ...]:
        """In turn, for as long as the engine says and the room is under way."""
        waiting = asyncio.ensure_future(self._in_turn(lease, call))
        ended = asyncio.ensure_future(_ended(lease))
        try:
            await asyncio.wait(
                (waiting, ended),
                timeout=call.timeout_ms / 1000,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiting.done():
                return waiting.result()
        finally:
            waiting.cancel()
            ended.cancel()
        if lease.failure is not None:
            raise lease.failure
        raise ArenaFull(
            Cause.ARENA_FULL,
            stage=Stage.ALLOCATE,
            detail=f"no {sum(call.sizes)} bytes within {call.timeout_ms} ms: "
            f"{self._shares.short_of(lease, sum(call.sizes))}",
        )

    async def _in_turn(self, lease: Lease, call: Reserve) -> tuple[Span, ...]:
        await self._shares.wait(lease, sum(call.sizes))
        return await self._storage.reserve(call.sizes, begun_at=lease.begun_at)

    async def _await_release(self, lease: Lease, call: AwaitRelease, send: Send) -> None:
        try:
            async with asyncio.timeout(call.timeout_ms / 1000):
                await _ended(lease)
        except TimeoutError:
            detail = f"the engine waited {call.timeout_ms} ms for the release"
            self._book.fail(lease, TransferFailed(Cause.TIMEOUT, stage=lease.stage, detail=detail))
        self._book.close(lease)
        if lease.failure is not None:
            raise lease.failure
        send(Done(call=call.call))

    def _abort(self, call: Abort) -> None:
        lease = self._book.find(call.room)
        if lease is None:
            return
        self._book.fail(lease, TransferFailed(Cause.ABORTED, stage=lease.stage, detail=call.detail))
        if call.stopped:
            self._book.close(lease)

    # -- decode agents

    def on_message(self, session: Session, message: Any) -> None:
        match message:
            case Want():
                self._wanted(session, message)
            case Pulled():
                index = message.index
                self._with_lease(
                    session, message, lambda lease, claim: self._offers.pulled(lease, claim, index)
                )
            case Landed():
                landed = partial(self._offers.landed, confirm=message.confirm)
                self._with_lease(session, message, landed)
            case Release():
                self._with_lease(session, message, self._released)
            case Failed():
                self._told_failed(session, message)
            case _:
                session.close(f"{type(message).__name__} is prefill's to send")

    def _wanted(self, session: Session, want: Want) -> None:
        try:
            self._check(session, want)
            claim = Claim(
                session=session,
                request=want.request,
                have=want.have,
                readers=self._readers(session),
            )
            lease = self._book.claim(want.room, claim)
        except TransferFailed as failure:
            tell(session, room=want.room, request=want.request, failure=failure)
            return
        if lease is not None:
            self._offers.announce(lease)

    def _readers(self, session: Session) -> int:
        """How many decode ranks read this rank's shard, by both sides' own counts."""
        engine, layout = self._book.engine, session.layout
        if engine is None or layout is None:
            return 1
        return max(1, layout.fingerprint.ranks // engine.fingerprint.ranks)

    def _check(self, session: Session, want: Want) -> None:
        engine = self._book.engine
        if engine is None:
            raise self._book.engine_lost(Stage.BOOTSTRAP)
        if want.epoch != engine.epoch:
            detail = f"wants registration {want.epoch}, the engine's is {engine.epoch}"
            raise TransferFailed(Cause.EPOCH_MISMATCH, stage=Stage.BOOTSTRAP, detail=detail)
        if session.differences:
            raise told_differences(session)

    def _with_lease(self, session: Session, message: Pulled | Landed | Release, act: Act) -> None:
        """Act on a live lease of this very request; a stale Landed is told that it is stale."""
        lease = self._book.find(message.room)
        claim = lease.claim_of(session, message.request) if lease else None
        failure = misuse(f"room {message.room} is not held for this request", stage=Stage.WIRE)
        if lease and claim:
            if not lease.ended:
                act(lease, claim)
                return
            failure = lease.failure or failure
        if isinstance(message, Landed) and message.confirm:
            tell(session, room=message.room, request=message.request, failure=failure)

    def _released(self, lease: Lease, claim: Claim) -> None:
        if not claim.landed or claim.released:
            claim.session.close(f"Release for room {lease.room} in state {lease.state}")
            return
        claim.released = True
        if not lease.released:
            return
        pods = Pods(prefill=self._pod, decode=claim.session.peer.pod)
        for tally in lease.tallies.values():
            self._outcomes.succeeded(tally.state_type, nbytes=tally.nbytes, pods=pods)
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


async def _ended(lease: Lease) -> None:
    while not lease.ended:
        await lease.changed.wait()


def _reserved(call: int, lease: Lease, spans: Sequence[Span]) -> Reserved:
    """The engine writes there from now on."""
    lease.written.update((span.number, span) for span in spans)
    lease.moved_at = asyncio.get_running_loop().time()
    return Reserved(
        call=call,
        extents=tuple(
            ReservedExtent(extent=span.number, offset=span.offset, nbytes=span.nbytes)
            for span in spans
        ),
    )
