"""What an engine and its agent say on the unix socket.

A call is answered by its number, a Stream as often as chunks are ready. A word (OfferPayload,
GiveBack, CloseStream) is not answered: what it leads to is told in the answer to a later call.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from disagg_transfer.codec import Aux, Between, Codec, Count, Name, Room, Text
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.protocol import MAX_NODES, MAX_RANKS, Rank

ENGINE_PROTOCOL: Final = 2
MAX_ENGINE_FRAME_BYTES: Final = 4 << 20

Millis = Annotated[int, Between(0, 24 * 3600 * 1000)]
Sizes = Annotated[tuple[Count, ...], Between(1, 4096)]
Items = Annotated[dict[Name, Count], Between(0, 256)]  # by component


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
    rank: Rank
    ranks: Annotated[int, Between(1, MAX_RANKS * MAX_NODES)]  # tensor parallel, of all its pods
    components: Annotated[tuple[RegisteredComponent, ...], Between(0, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Answered by Reserved, with extents of these sizes where they are free at once, or none."""

    call: Count
    room: Room
    sizes: Annotated[tuple[Count, ...], Between(0, 4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Extents of these sizes, all or none."""

    call: Count
    room: Room
    sizes: Sizes
    timeout_ms: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferPayload:
    room: Room
    component: Name
    extent: Count
    first: Count
    items: Count
    final: bool
    last: bool
    aux: Aux


@dataclass(frozen=True, slots=True, kw_only=True)
class AskWanted:
    call: Count
    room: Room


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitRelease:
    call: Count
    room: Room
    timeout_ms: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """`stopped`: no view of the room is touched any more; else its own thread says so later."""

    call: Count
    room: Room
    stopped: bool
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The engine does not take its copy of the request up: no Begin, no Pull."""

    call: Count
    room: Room
    peer: Text  # decode: the prefill agent to tell; empty from prefill
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Chunks as they land; its call number names it from then on."""

    call: Count
    room: Room
    peer: Name
    expect: Items
    have: Items


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """These extents are scattered."""

    stream: Count
    extents: Annotated[tuple[Count, ...], Between(1, 1 << 16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStream:
    """It has failed, or is left before its end; no chunk of it is touched any more."""

    stream: Count
    detail: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseStream:
    """Everything is scattered."""

    call: Count
    stream: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Where an arena on a GPU is, and the handle by which another process opens it."""

    uuid: Name
    handle: Annotated[bytes, Between(64, 64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """Beside this frame travel the descriptors (SCM_RIGHTS) of the arena, where that is in host
    memory, and of its lifeline.
    """

    call: Count
    arena_bytes: Count
    epoch: Count
    gpu: GpuMemory | None


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
class ReservedExtent:
    extent: Count
    offset: Count
    nbytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    call: Count
    extents: Annotated[tuple[ReservedExtent, ...], Between(0, 4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    call: Count
    have: Items


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivedChunk:
    component: Name
    source: Rank  # of prefill
    first: Count
    items: Count
    skip: Count
    extent: Count
    offset: Count
    nbytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Chunks that are in the arena and whole; with `ended` the request is, too."""

    call: Count
    chunks: Annotated[tuple[ArrivedChunk, ...], Between(0, 1 << 16)]
    ended: bool
    aux: Aux
    prefill_pod: Text
    prefill_ranks: Count


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


Word = OfferPayload | GiveBack | CloseStream
Call = (
    Register | Begin | Reserve | AskWanted | AwaitRelease | Abort | Refuse | Stream | ReleaseStream
)
Answer = Registered | Rejected | Done | Reserved | Wanted | Arrived | Refused

WORDS: Final = (OfferPayload, GiveBack, CloseStream)
CALLS: Final = Codec(
    (
        Register,
        Begin,
        Reserve,
        AskWanted,
        AwaitRelease,
        Abort,
        Refuse,
        Stream,
        ReleaseStream,
        *WORDS,
    ),
)
ANSWERS: Final = Codec((Registered, Rejected, Done, Reserved, Wanted, Arrived, Refused))
