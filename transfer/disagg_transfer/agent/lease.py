"""What prefill holds for one room, and how long it may."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.session import Session
from disagg_transfer.arena import Span
from disagg_transfer.contract import Stage
from disagg_transfer.errors import TransferFailed
from disagg_transfer.placing import Course
from disagg_transfer.protocol import Offer


@dataclass(slots=True, kw_only=True)
class Claim:
    """A decode rank that wants a room, and how far it has come with it."""

    session: Session
    request: bytes
    have: Mapping[str, int]  # leading items that it holds already, by component
    readers: int = 1  # decode ranks that read this shard, each by a claim of its own
    passed: int = 0  # this many of the lease's chunks have been announced to it, or skipped
    announced: "list[Held | None]" = field(default_factory=list)  # by index; None: it has it
    landed: bool = False
    released: bool = False

    def needs(self, offer: Offer) -> bool:
        """The last offer is always said: it carries aux, and ends the count."""
        have = self.have.get(offer.component, 0)
        return offer.last or not have or offer.first + offer.items > have

    def shares_with(self, other: "Claim") -> bool:
        """Whether it is of another rank of the same request."""
        ours, theirs = self.session, other.session
        return ours.peer.group == theirs.peer.group and ours.theirs != theirs.theirs


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """One chunk, gathered; its offer lacks request, index and digest until they are known."""

    offer: Offer
    state_type: str
    span: Span | None  # None: given back to the arena
    digest: bytes | None = None  # None: being taken
    done: int = 0  # readers that have it, or have no need of it
    skipped: int = 0  # of these, the latter


@dataclass(slots=True, kw_only=True)
class Tally:
    """How far one component is offered, and how far decode has it."""

    state_type: str
    course: Course = field(default_factory=Course)
    pulled: int = 0  # chunks
    nbytes: int = 0  # of chunks that decode lacks

    @property
    def whole(self) -> bool:
        return self.course.final and self.pulled == self.course.chunks


@dataclass(slots=True)
class Lease:
    room: int
    begun_at: float
    moved_at: float  # when it last got anywhere
    written: dict[int, Span] = field(default_factory=dict)  # the engine writes here
    held: list[Held] = field(default_factory=list)  # in the engine's order
    tallies: dict[str, Tally] = field(default_factory=dict)  # by component
    last_offered: bool = False
    claims: list[Claim] = field(default_factory=list)
    failure: TransferFailed | None = None
    changed: Pulse = field(default_factory=Pulse)

    @property
    def readers(self) -> int:
        return self.claims[0].readers if self.claims else 1

    @property
    def claimed(self) -> bool:
        """By every decode rank that reads it."""
        return bool(self.claims) and len(self.claims) == self.readers

    @property
    def landed(self) -> bool:
        return self.claimed and all(claim.landed for claim in self.claims)

    @property
    def released(self) -> bool:
        return self.claimed and all(claim.released for claim in self.claims)

    def claim_of(self, session: Session, request: bytes) -> Claim | None:
        for claim in self.claims:
            if claim.session is session and claim.request == request:
                return claim
        return None

    @property
    def decode_pod(self) -> str:
        return self.claims[0].session.peer.pod if self.claims else ""

    @property
    def have(self) -> dict[str, int]:
        """Leading items that every reader holds; none while one may still come."""
        if not self.claimed:
            return {}
        common = {
            name: min(claim.have.get(name, 0) for claim in self.claims)
            for name in self.claims[0].have
        }
        return {name: items for name, items in common.items() if items}

    @property
    def held_bytes(self) -> int:
        """Of the arena, offered or being written."""
        offered = sum(held.span.nbytes for held in self.held if held.span is not None)
        return offered + sum(span.nbytes for span in self.written.values())

    @property
    def ended(self) -> bool:
        return self.released or self.failure is not None

    @property
    def pulled(self) -> frozenset[str]:
        """Components that decode has whole."""
        return frozenset(name for name, tally in self.tallies.items() if self.landed or tally.whole)

    @property
    def stage(self) -> Stage:
        if self.landed:
            return Stage.SCATTER
        if self.last_offered:
            return Stage.WIRE
        return Stage.NOTIFY if self.held else Stage.QUEUE

    @property
    def state(self) -> str:
        if self.failure is not None:
            return f"FAILED({self.failure.cause}, {self.failure.stage})"
        if self.released:
            return "RELEASED"
        if self.landed:
            return "ARRIVED"
        if self.held:
            return "PULLING" if self.claims else "OFFERED"
        return "NEW"
