"""What an engine and its agent say on the unix socket; every call is answered by its number."""

from dataclasses import dataclass
from typing import Annotated, Final

from disagg_transfer.codec import Aux, Between, Codec, Count, Name, Room, Text
from disagg_transfer.contract import Cause, Stage

ENGINE_PROTOCOL: Final = 1
MAX_ENGINE_FRAME_BYTES: Final = 4 << 20

Millis = Annotated[int, Between(0, 24 * 3600 * 1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredComponent:
    name: Name
    state_type: Name
    item_bytes: Count
    layers: Count
    dtype: Name
    page_size: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """`instance` names the engine's process."""

    call: Count
    protocol: Count
    role: Name
    model: Name
    page_size: Count
    instance: Name
    components: Annotated[tuple[RegisteredComponent, ...], Between(0, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    call: Count
    room: Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    call: Count
    room: Room
    nbytes: Count
    timeout_ms: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferPayload:
    call: Count
    room: Room
    component: Name
    extent: Count
    items: Count
    last: bool
    aux: Aux


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitRelease:
    call: Count
    room: Room
    timeout_ms: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    call: Count
    room: Room
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The engine does not take its copy of the request up: no Begin, no Pull."""

    call: Count
    room: Room
    peer: Text  # decode: the prefill agent to tell; empty from prefill
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    call: Count
    room: Room
    peer: Name
    expect: Annotated[dict[Name, Count], Between(0, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRoom:
    call: Count
    room: Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """The descriptors of the arena and of its lifeline travel beside this frame (SCM_RIGHTS)."""

    call: Count
    arena_bytes: Count
    epoch: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The registration is refused."""

    call: Count
    unknown_state_type: bool
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    call: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    call: Count
    extent: Count
    offset: Count
    nbytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivedPayload:
    component: Name
    items: Count
    offset: Count
    nbytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    call: Count
    payloads: Annotated[tuple[ArrivedPayload, ...], Between(0, 256)]
    aux: Aux
    prefill_pod: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The call's request has failed."""

    call: Count
    cause: Cause
    stage: Stage
    state_type: Name | None
    component: Name | None
    detail: Text
    peer_pod: Text


Call = (
    Register | Begin | Reserve | OfferPayload | AwaitRelease | Abort | Refuse | Pull | ReleaseRoom
)
Answer = Registered | Rejected | Done | Reserved | Arrived | Refused

CALLS: Final = Codec(
    (Register, Begin, Reserve, OfferPayload, AwaitRelease, Abort, Refuse, Pull, ReleaseRoom),
)
ANSWERS: Final = Codec((Registered, Rejected, Done, Reserved, Arrived, Refused))
