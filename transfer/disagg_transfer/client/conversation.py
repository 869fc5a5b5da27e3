"""What an engine says to its agent and what the answers mean, without any I/O.

A transport, blocking or asyncio, sends the frames that are made here and hands back what it
reads; the rules that an engine can break are checked here, before anything is sent.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from disagg_transfer.client.arena import ArenaView
from disagg_transfer.client.values import Component, Extent
from disagg_transfer.codec import frame, unframed
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.engine_messages import (
    ANSWERS,
    CALLS,
    MAX_ENGINE_FRAME_BYTES,
    Abort,
    Arrived,
    AskWanted,
    AwaitRelease,
    Begin,
    CloseStream,
    GiveBack,
    OfferPayload,
    Refuse,
    Refused,
    ReleaseStream,
    Reserve,
    Reserved,
    Stream,
    Wanted,
)
from disagg_transfer.errors import ArenaFull, TransferFailed
from disagg_transfer.placing import Course, check_size

_MAX_DETAIL: Final = 2048
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Generic[T]):
    """A call, and how its answer is read."""

    call: int
    frame: bytes
    read: Callable[[Any], T]

    def answered(self, answer: Any) -> T:
        """TransferFailed when the agent refuses, or is gone."""
        if isinstance(answer, Refused):
            raise _failure(answer)
        if isinstance(answer, TransferFailed):
            raise answer
        return self.read(answer)


@dataclass(slots=True, kw_only=True)
class _Room:
    """What prefill has offered of one room."""

    courses: dict[str, Course] = field(default_factory=dict)
    have: Mapping[str, int] = field(default_factory=dict)
    writing: set[int] = field(default_factory=set)  # extents
    last: bool = False


@dataclass(slots=True)
class _OpenStream:
    room: int
    aborted: str | None = None  # why this engine has ended it


class Conversation:
    def __init__(self, arena: ArenaView, components: Sequence[Component]) -> None:
        self.arena = arena
        self.components = {component.name: component for component in components}
        self._calls = itertools.count(1)
        self._rooms: dict[int, _Room] = {}
        self._streams: dict[int, _OpenStream] = {}  # by their calls

    def leave(self) -> None:
        """The client's part in the arena's mapping ends; views have theirs."""
        self.arena.leave()

    # -- prefill

    def begin(self, room: int, reserve: Sequence[int]) -> Ask[tuple[Extent, ...]]:
        def begun(answer: Reserved) -> tuple[Extent, ...]:
            self._rooms[room] = _Room()
            return self._lend(room, answer)

        call = Begin(call=next(self._calls), room=room, sizes=tuple(reserve))
        return self._ask(call, begun)

    def reserve(self, room: int, sizes: Sequence[int], timeout_s: float) -> Ask[tuple[Extent, ...]]:
        call = Reserve(
            call=next(self._calls),
            room=room,
            sizes=tuple(sizes),
            timeout_ms=int(timeout_s * 1000),
        )
        return self._ask(call, lambda answer: self._lend(room, answer))

    def offer(
        self,
        room: int,
        component: str,
        extent: Extent,
        *,
        items: int,
        first: int,
        final: bool,
        last: bool,
        aux: bytes,
    ) -> bytes:
        """The frame to send; nothing answers it."""
        state = self._begun(room)
        part = self.components.get(component)
        if part is None:
            known = ", ".join(sorted(self.components))
            raise misused(f"component {component!r} is not registered; registered: {known}")
        if extent.extent not in state.writing:
            raise misused(f"extent {extent.extent} is not one that room {room} writes")
        if state.last:
            raise misused(f"component {component} is offered after the last offer")
        check_size(part, items=items, nbytes=extent.nbytes)
        course = state.courses.get(component, Course())
        have = state.have.get(component, 0)
        course.check(component, first=first, items=items, final=final, have=have)
        word = _encode(
            OfferPayload(
                room=room,
                component=component,
                extent=extent.extent,
                first=first,
                items=items,
                final=final,
                last=last,
                aux=aux,
            )
        )
        course.extend(first=first, items=items, final=final)
        state.courses[component] = course
        state.writing.discard(extent.extent)
        state.last = last
        return word

    def wanted(self, room: int) -> Ask[Mapping[str, int]]:
        def told(answer: Wanted) -> Mapping[str, int]:
            self._begun(room).have = answer.have
            return answer.have

        return self._ask(AskWanted(call=next(self._calls), room=room), told)

    def wait_released(self, room: int, timeout_s: float) -> Ask[None]:
        call = AwaitRelease(call=next(self._calls), room=room, timeout_ms=int(timeout_s * 1000))
        return self._ask(call, lambda _done: self._end(room))

    # -- either role

    def abort(self, room: int, detail: str, *, stopped: bool) -> Ask[None]:
        call = Abort(
            call=next(self._calls), room=room, stopped=stopped, detail=detail[:_MAX_DETAIL]
        )
        if stopped:
            self._end(room)
        for stream in list(self._streams.values()):  # of a moment: any thread may open one
            if stream.room == room:
                stream.aborted = detail
        return self._ask(call, _nothing)

    def refuse(self, room: int, *, detail: str, peer: str) -> Ask[None]:
        call = Refuse(call=next(self._calls), room=room, peer=peer, detail=detail[:_MAX_DETAIL])
        return self._ask(call, _nothing)

    # -- decode

    def stream(
        self, room: int, *, peer: str, expect: Mapping[str, int], have: Mapping[str, int]
    ) -> tuple[int, bytes]:
        """The stream's number, and the frame that asks for it."""
        call = Stream(
            call=next(self._calls), room=room, peer=peer, expect=dict(expect), have=dict(have)
        )
        opening = _encode(call)
        self._streams[call.call] = _OpenStream(room)
        return call.call, opening

    def aborted(self, stream: int) -> str | None:
        """Why, where this engine has ended the stream's room."""
        found = self._streams.get(stream)
        return found.aborted if found else None

    def release(self, stream: int) -> bytes:
        self.forget(stream)
        return _encode(ReleaseStream(stream=stream))

    @staticmethod
    def give_back(stream: int, extents: Sequence[int]) -> bytes:
        return _encode(GiveBack(stream=stream, extents=tuple(extents)))

    def close_stream(self, stream: int, detail: str, *, tell: bool) -> bytes:
        """The frame to send; none where the agent has nothing more of it, and need not be told."""
        self.forget(stream)
        return _encode(CloseStream(stream=stream, detail=detail[:_MAX_DETAIL])) if tell else b""

    def forget(self, stream: int) -> None:
        """It is not open any more."""
        self._streams.pop(stream, None)

    def _ask(self, message: Any, read: Callable[[Any], T]) -> Ask[T]:
        return Ask(call=message.call, frame=_encode(message), read=read)

    def _lend(self, room: int, answer: Reserved) -> tuple[Extent, ...]:
        extents = tuple(
            Extent(
                extent=each.extent,
                room=room,
                nbytes=each.nbytes,
                view=self.arena.host(each.offset, each.nbytes),
                on_gpu=self.arena.gpu(each.offset, each.nbytes),
            )
            for each in answer.extents
        )
        self._begun(room).writing.update(extent.extent for extent in extents)
        return extents

    def _begun(self, room: int) -> _Room:
        state = self._rooms.get(room)
        if state is None:
            raise misused(f"room {room} has not begun, or has ended")
        return state

    def _end(self, room: int) -> None:
        self._rooms.pop(room, None)


class Frames:
    """The agent's answers out of a stream of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """WireError on anything that is no answer."""
        self._data += data
        while (body := unframed(self._data, low=0, high=MAX_ENGINE_FRAME_BYTES)) is not None:
            yield ANSWERS.decode(body)


def is_last(answer: Any) -> bool:
    """Whether its call has no further answer."""
    return not isinstance(answer, Arrived) or answer.ended


def agent_gone() -> TransferFailed:
    return TransferFailed(
        Cause.ENGINE_LOST,
        stage=Stage.BOOTSTRAP,
        detail="this engine's connection to its agent is gone; connect again",
    )


def misused(detail: str) -> TransferFailed:
    return TransferFailed(Cause.PROTOCOL_ERROR, stage=Stage.QUEUE, detail=detail)


def _encode(message: Any) -> bytes:
    """A bad argument fails here, by name."""
    return frame(CALLS.encode_checked(message))


def _nothing(_done: Any) -> None:
    """The answer says no more than that it is done."""


def _failure(refused: Refused) -> TransferFailed:
    kind = ArenaFull if refused.cause is Cause.ARENA_FULL else TransferFailed
    return kind(
        refused.cause,
        stage=refused.stage,
        state_type=refused.state_type,
        component=refused.component,
        detail=refused.detail,
        peer_pod=refused.peer_pod,
    )
