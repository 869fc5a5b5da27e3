"""A prefill engine's offers on their way to decode: checked, sealed, said in order, taken back."""

import asyncio
from typing import Final

from msgspec.structs import replace

from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.lease import Claim, Held, Lease, Tally
from disagg_transfer.agent.leasebook import LeaseBook
from disagg_transfer.agent.relay import misuse
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import Span
from disagg_transfer.engine_messages import OfferPayload
from disagg_transfer.integrity import Sampling
from disagg_transfer.placing import Course, check_size
from disagg_transfer.protocol import ComponentLayout, Confirmed, Offer

_NO_REQUEST: Final = bytes(16)


class Offers:
    def __init__(
        self, book: LeaseBook, *, storage: Storage, faults: Faults, integrity: Sampling
    ) -> None:
        self._book, self._storage = book, storage
        self._faults, self._integrity = faults, integrity
        self._digests: set[asyncio.Task[None]] = set()

    def take(self, lease: Lease, word: OfferPayload, span: Span) -> None:
        part = self._registered(word.component)
        self._check_place(lease, word)
        check_size(part, items=word.items, nbytes=span.nbytes)
        tally = lease.tallies.setdefault(word.component, Tally(state_type=part.state_type))
        held = Held(
            offer=self._unsent(lease, word, span, chunk=tally.course.chunks),
            state_type=part.state_type,
            span=span,
        )
        tally.course.extend(first=word.first, items=word.items, final=word.final)
        tally.nbytes += span.nbytes
        lease.held.append(held)
        lease.last_offered = word.last
        lease.moved_at = asyncio.get_running_loop().time()
        self._seal(lease, held, span)

    def _registered(self, component: str) -> ComponentLayout:
        engine = self._book.engine
        assert engine is not None
        part = engine.parts.get(component)
        if part is None:
            known = ", ".join(sorted(engine.parts))
            raise misuse(f"component {component!r} is not registered; registered: {known}")
        return part

    def _check_place(self, lease: Lease, word: OfferPayload) -> None:
        if lease.last_offered:
            raise misuse(f"component {word.component} is offered after the last offer")
        have = lease.have.get(word.component, 0)
        tally = lease.tallies.get(word.component)
        course = tally.course if tally else Course()
        course.check(
            word.component, first=word.first, items=word.items, final=word.final, have=have
        )

    def _unsent(self, lease: Lease, word: OfferPayload, span: Span, *, chunk: int) -> Offer:
        engine = self._book.engine
        assert engine is not None
        return Offer(
            room=lease.room,
            request=_NO_REQUEST,
            epoch=engine.epoch,
            index=0,
            last=word.last,
            component=word.component,
            chunk=chunk,
            first=word.first,
            items=word.items,
            final=word.final,
            offset=span.offset,
            nbytes=span.nbytes,
            digest=b"",
            aux=word.aux,
        )

    def _seal(self, lease: Lease, held: Held, span: Span) -> None:
        """Take the digest, in a thread where it is long; then announce what is next in turn."""
        offer = held.offer
        wanted = self._integrity.checks(
            room=lease.room, component=offer.component, chunk=offer.chunk
        )
        held.digest = self._storage.digest_now(span) if wanted else b""
        if held.digest is not None:
            self._sealed(lease, held)
            return
        task = asyncio.create_task(self._digest(lease, held, span))
        self._digests.add(task)
        task.add_done_callback(self._digests.discard)

    async def _digest(self, lease: Lease, held: Held, span: Span) -> None:
        digest = await self._storage.digest(span)
        if held.span is span:  # else the lease failed meanwhile, and the memory is another's
            held.digest = digest
            self._sealed(lease, held)

    def _sealed(self, lease: Lease, held: Held) -> None:
        if held.span is not None and self._faults.zeroes(held.state_type):
            self._storage.zero(held.span)
        self.announce(lease)

    def announce(self, lease: Lease) -> None:
        """Say what is sealed, in the engine's order: an offer's index is its place in it."""
        for claim in lease.claims:
            if not lease.ended:
                self._announce(lease, claim)

    def _announce(self, lease: Lease, claim: Claim) -> None:
        offers: list[Offer] = []
        while claim.passed < len(lease.held):
            held = lease.held[claim.passed]
            if held.digest is None:
                break
            claim.passed += 1
            if not claim.needs(held.offer):
                held.skipped += 1
                self._done(lease, held)
                continue
            index = len(claim.announced)
            claim.announced.append(held)
            offer = replace(held.offer, request=claim.request, index=index, digest=held.digest)
            offers += [offer] * self._faults.copies(held.state_type)
        claim.session.send(*offers)

    def _done(self, lease: Lease, held: Held) -> None:
        """One more reader is through with a chunk; the last one frees it."""
        held.done += 1
        if held.done < lease.readers:
            return
        tally = lease.tallies[held.offer.component]
        tally.pulled += 1
        if held.skipped == held.done:
            tally.nbytes -= held.offer.nbytes
        self._book.free((held,))

    def pulled(self, lease: Lease, claim: Claim, index: int) -> None:
        if index >= len(claim.announced):
            claim.session.close(f"Pulled for offer {index} of room {lease.room}, never made")
            return
        held, claim.announced[index] = claim.announced[index], None
        if held is not None:
            lease.moved_at = asyncio.get_running_loop().time()
            self._done(lease, held)

    def landed(self, lease: Lease, claim: Claim, *, confirm: bool) -> None:
        if claim.landed or not lease.last_offered:
            claim.session.close(f"Landed for room {lease.room} in state {lease.state}")
            return
        claim.landed, lease.moved_at = True, asyncio.get_running_loop().time()
        for index in range(len(claim.announced)):
            self.pulled(lease, claim, index)
        if confirm:
            claim.session.send(Confirmed(room=lease.room, request=claim.request))
