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
    """A decode agent that wants a room."""

    session: Session
    request: bytes
    have: Mapping[str, int]  # leading items that it holds already, by component

    def needs(self, offer: Offer) -> bool:
        """The last offer is always said: it carries aux, and ends the count."""
        have = self.have.get(offer.component, 0)
        return offer.last or not have or offer.first + offer.items > have


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """One chunk, gathered; its offer lacks request, index and digest until they are known."""

    offer: Offer
    state_type: str
    span: Span | None  # None: given back to the arena
    digest: bytes | None = None  # None: being taken


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
    passed: int = 0  # this many of `held` have been announced, or skipped
    announced: list[Held] = field(default_factory=list)  # by the index of their offer
    tallies: dict[str, Tally] = field(default_factory=dict)  # by component
    last_offered: bool = False
    claim: Claim | None = None
    landed: bool = False
    released: bool = False
    failure: TransferFailed | None = None
    changed: Pulse = field(default_factory=Pulse)

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
            return "PULLING" if self.claim else "OFFERED"
        return "NEW"
