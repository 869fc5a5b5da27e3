"""What an engine and its agent say on the unix socket.

A call is answered by its number, a Stream as often as chunks are ready. A word (OfferPayload,
GiveBack, CloseStream, ReleaseStream) is not answered: what it leads to is told in the answer to a
later call, and by when a request must be released in the last answer to its Stream.
"""

from typing import Annotated, Final

from disagg_transfer.codec import (
    Aux,
    Codec,
    Count,
    Message,
    Name,
    Record,
    Room,
    Text,
    sized,
    within,
)
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.protocol import MAX_NODES, MAX_RANKS, Rank

ENGINE_PROTOCOL: Final = 3
MAX_ENGINE_FRAME_BYTES: Final = 4 << 20

Millis = Annotated[int, within(0, 24 * 3600 * 1000)]
Sizes = Annotated[tuple[Count, ...], sized(1, 4096)]
Items = Annotated[dict[Name, Count], sized(0, 256)]  # by component


class RegisteredComponent(Record, frozen=True, kw_only=True):
    name: Name
    state_type: Name
    item_bytes: Count
    layers: Count
    dtype: Name
    page_size: Count


class Register(Message, frozen=True, kw_only=True):
    """`instance` names the engine's process."""

    call: Count
    protocol: Count
    role: Name
    model: Name
    page_size: Count
    instance: Name
    rank: Rank
    ranks: Annotated[int, within(1, MAX_RANKS * MAX_NODES)]  # tensor parallel, of all its pods
    components: Annotated[tuple[RegisteredComponent, ...], sized(0, 256)]


class Begin(Message, frozen=True, kw_only=True):
    """Answered by Reserved, with extents of these sizes where they are free at once, or none."""

    call: Count
    room: Room
    sizes: Annotated[tuple[Count, ...], sized(0, 4096)]


class Reserve(Message, frozen=True, kw_only=True):
    """Extents of these sizes, all or none."""

    call: Count
    room: Room
    sizes: Sizes
    timeout_ms: Millis


class OfferPayload(Message, frozen=True, kw_only=True):
    room: Room
    component: Name
    extent: Count
    first: Count
    items: Count
    final: bool
    last: bool
    aux: Aux


class AskWanted(Message, frozen=True, kw_only=True):
    call: Count
    room: Room


class AwaitRelease(Message, frozen=True, kw_only=True):
    call: Count
    room: Room
    timeout_ms: Millis


class Abort(Message, frozen=True, kw_only=True):
    """`stopped`: no view of the room is touched any more; else its own thread says so later."""

    call: Count
    room: Room
    stopped: bool
    detail: Text


class Refuse(Message, frozen=True, kw_only=True):
    """The engine does not take its copy of the request up: no Begin, no Pull."""

    call: Count
    room: Room
    peer: Text  # decode: the prefill agent to tell; empty from prefill
    detail: Text


class Stream(Message, frozen=True, kw_only=True):
    """Chunks as they land; its call number names it from then on."""

    call: Count
    room: Room
    peer: Name
    expect: Items
    have: Items


class GiveBack(Message, frozen=True, kw_only=True):
    """These extents are scattered."""

    stream: Count
    extents: Annotated[tuple[Count, ...], sized(1, 1 << 16)]


class CloseStream(Message, frozen=True, kw_only=True):
    """It has failed, or is left before its end; no chunk of it is touched any more."""

    stream: Count
    detail: Text


class ReleaseStream(Message, frozen=True, kw_only=True):
    """Everything is scattered, in time."""

    stream: Count


class GpuMemory(Record, frozen=True, kw_only=True):
    """Where an arena on a GPU is, and the handle by which another process opens it."""

    uuid: Name
    handle: Annotated[bytes, sized(64, 64)]


class Registered(Message, frozen=True, kw_only=True):
    """Beside this frame travel the descriptors (SCM_RIGHTS) of the arena, where that is in host
    memory, and of its lifeline.
    """

    call: Count
    arena_bytes: Count
    epoch: Count
    gpu: GpuMemory | None


class Rejected(Message, frozen=True, kw_only=True):
    """The registration is refused."""

    call: Count
    unknown_state_type: bool
    detail: Text


class Done(Message, frozen=True, kw_only=True):
    call: Count


class ReservedExtent(Record, frozen=True, kw_only=True):
    extent: Count
    offset: Count
    nbytes: Count


class Reserved(Message, frozen=True, kw_only=True):
    call: Count
    extents: Annotated[tuple[ReservedExtent, ...], sized(0, 4096)]


class Wanted(Message, frozen=True, kw_only=True):
    call: Count
    have: Items


class ArrivedChunk(Record, frozen=True, kw_only=True):
    component: Name
    source: Rank  # of prefill
    first: Count
    items: Count
    skip: Count
    extent: Count
    offset: Count
    nbytes: Count


class Arrived(Message, frozen=True, kw_only=True):
    """Chunks that are in the arena and whole; with `ended` the request is, too.

    `release_by` is of the machine's monotonic clock, in milliseconds: after it the request may have
    failed for being late, and counts for nothing.
    """

    call: Count
    chunks: Annotated[tuple[ArrivedChunk, ...], sized(0, 1 << 16)]
    ended: bool
    release_by: Count
    aux: Aux
    prefill_pod: Text
    prefill_ranks: Count


class Refused(Message, frozen=True, kw_only=True):
    """The call's request has failed."""

    call: Count
    cause: Cause
    stage: Stage
    state_type: Name | None
    component: Name | None
    detail: Text
    peer_pod: Text


Word = OfferPayload | GiveBack | CloseStream | ReleaseStream
Call = Register | Begin | Reserve | AskWanted | AwaitRelease | Abort | Refuse | Stream
Answer = Registered | Rejected | Done | Reserved | Wanted | Arrived | Refused

WORDS: Final = (OfferPayload, GiveBack, CloseStream, ReleaseStream)
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
        *WORDS,
    ),
)
ANSWERS: Final = Codec((Registered, Rejected, Done, Reserved, Wanted, Arrived, Refused))
