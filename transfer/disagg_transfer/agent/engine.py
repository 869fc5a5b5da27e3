"""The engine that is registered with this agent, and the desk that serves its role."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from disagg_transfer.agent.lifeline import Lifeline
from disagg_transfer.engine_messages import Answer, Call, Word
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import ComponentLayout, Fingerprint

if TYPE_CHECKING:
    from disagg_transfer.agent.session import Session


Send = Callable[[Answer], None]  # one answer to a call, of which a Stream has several


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One registration; the epoch tells it from the ones before."""

    epoch: int
    instance: str
    lifeline: Lifeline
    fingerprint: Fingerprint
    parts: Mapping[str, ComponentLayout]

    @property
    def state_types(self) -> frozenset[str]:
        return frozenset(part.state_type for part in self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One request as `disagg-agent transfers` shows it."""

    room: int
    state: str
    peer_pod: str
    age_s: float
    components: str


class Desk(Protocol):
    """What prefill and decode have in common for everybody else."""

    @property
    def sights(self) -> tuple[Sight, ...]: ...

    @property
    def inflight(self) -> int: ...

    def engine_registered(self, engine: Engine) -> None: ...

    def engine_lost(self) -> None: ...

    def engine_unmapped(self, engine: Engine) -> None: ...

    def answer_now(self, call: Call) -> Answer | None:
        """None where `answer` has to wait for something."""

    def answer(self, call: Call, send: Send) -> Coroutine[Any, Any, None]:
        """Take the call up: the engine's next word may be about it. What is returned sends every
        answer; either raises what the call is refused for.
        """

    def take(self, word: Word) -> None: ...

    def on_message(self, session: "Session", message: Any) -> None: ...

    def on_session_lost(self, session: "Session", failure: TransferFailed) -> None: ...

    def on_peer_engine_lost(self, session: "Session") -> None: ...
