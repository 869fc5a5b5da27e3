"""What prefill holds for one room, and how long it may."""

from dataclasses import dataclass, field

from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.session import Session
from disagg_transfer.arena import Span
from disagg_transfer.contract import Stage
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Offer


@dataclass(slots=True, kw_only=True)
class Claim:
    """A decode agent that wants a room."""

    session: Session
    request: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One payload, gathered and ready; `offer` lacks the request until somebody claims it."""

    offer: Offer
    state_type: str
    span: Span


@dataclass(slots=True)
class Lease:
    room: int
    begun_at: float
    moved_at: float  # when it last got anywhere
    written: dict[int, Span] = field(default_factory=dict)  # the engine writes here
    held: list[Held] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # components offered
    pulled: set[str] = field(default_factory=set)  # components that decode has whole
    next_index: int = 0
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
