"""The blocking client: one socket to the agent, any number of threads calling."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from disagg_transfer.client import registration
from disagg_transfer.client.arena import OpenOnGpu
from disagg_transfer.client.conversation import (
    Conversation,
    misused,
)
from disagg_transfer.client.intake import Collector, Intake
from disagg_transfer.client.line import Answers, Line
from disagg_transfer.client.registration import Connection
from disagg_transfer.client.values import Arrival, Chunk, Component, Extent
from disagg_transfer.errors import TransferFailed


class AgentClient:
    """A registered engine; when the agent goes, `lost` is set and `connect` has to be called again.

    Every pending call then raises TransferFailed with cause EngineLost.
    """

    def __init__(self, connection: Connection, components: Sequence[Component]) -> None:
        self._line = Line(connection.socket)
        self._conversation = Conversation(connection.arena, components)
        self._pulled: dict[int, ChunkStream] = {}  # by room, until released

    @property
    def lost(self) -> threading.Event:
        return self._line.lost

    @property
    def arena(self) -> memoryview:
        """All of the arena, for an engine that registers it with CUDA; empty if it is on a GPU."""
        return self._conversation.arena.whole

    @classmethod
    def connect(
        cls,
        socket_path: str,
        *,
        role: str,
        model: str,
        components: Sequence[Component],
        page_size: int,
        timeout_s: float,
        on_gpu: OpenOnGpu | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> "AgentClient":
        """Register with the agent as tensor-parallel rank `rank` of `ranks`, over all pods of the
        group; retries until the agent's socket is there.

        `on_gpu` opens the agent's arena where that is on a GPU: engines.cuda.DeviceArena.

        Raises RegistrationError when the agent refuses, AgentUnavailableError when it is late.
        """
        connection = registration.connect(
            socket_path,
            role=role,
            model=model,
            components=components,
            page_size=page_size,
            timeout_s=timeout_s,
            on_gpu=on_gpu,
            rank=rank,
            ranks=ranks,
        )
        return cls(connection, components)

    def begin(self, room: int, *, reserve: Sequence[int] = ()) -> tuple[Extent, ...]:
        """Prefill starts on this room; TransferFailed when the room is in flight or given up.

        With `reserve` it is given memory of these sizes where all of it is free at once, else
        none: a small request then need not ask again when its state is computed.
        """
        return self._line.ask(self._conversation.begin(room, reserve))

    def reserve(self, room: int, nbytes: int, *, timeout_s: float) -> Extent:
        """Arena memory for one chunk; ArenaFull when none is free in time."""
        return self.reserve_all(room, (nbytes,), timeout_s=timeout_s)[0]

    def reserve_all(
        self, room: int, sizes: Sequence[int], *, timeout_s: float
    ) -> tuple[Extent, ...]:
        """Memory for several chunks in one exchange, all or none; for requests of a few small ones.

        A request of many chunks reserves one at a time, so that it passes through any arena.
        """
        return self._line.ask(self._conversation.reserve(room, sizes, timeout_s))

    def offer(
        self,
        room: int,
        component: str,
        extent: Extent,
        *,
        items: int,
        last: bool,
        first: int = 0,
        final: bool = True,
        aux: bytes = b"",
    ) -> None:
        """Hand over items [first, first + items), laid out [tensor][item][bytes] in the extent.

        `final` is the component's last chunk; the request's last offer says `last` and carries aux.
        No answer is awaited: a misuse is raised here, a failed request by the next call.
        """
        word = self._conversation.offer(
            room,
            component,
            extent,
            items=items,
            first=first,
            final=final,
            last=last,
            aux=aux,
        )
        self._line.send(word)

    def wanted(self, room: int) -> Mapping[str, int]:
        """Leading items of each component that decode holds already; none until it has claimed."""
        return self._line.ask(self._conversation.wanted(room))

    def wait_released(self, room: int, timeout_s: float) -> None:
        """Return when decode has taken everything; TransferFailed otherwise."""
        self._line.ask(self._conversation.wait_released(room, timeout_s))

    def abort(self, room: int, detail: str) -> None:
        """Give the room up on either role; the peer is told. No view of it is touched after."""
        pulled = self._pulled.pop(room, None)
        self._line.ask(self._conversation.abort(room, detail, stopped=True))
        if pulled is not None:
            self._conversation.forget(pulled.intake.number)

    def cancel(self, room: int, detail: str) -> None:
        """Abort from another thread: the one at work on the room fails at its next call of it.

        Memory that it may be using stays its own until then.
        """
        self._line.ask(self._conversation.abort(room, detail, stopped=False))

    def refuse(self, room: int, *, detail: str, peer: str = "") -> None:
        """Say that this engine will neither begin nor pull the room; the peer is told at once.

        Decode names its `peer` as for stream. A room that is in flight here stays as it is: the
        refused request was another one of the same number.
        """
        self._line.ask(self._conversation.refuse(room, detail=detail, peer=peer))

    def stream(
        self,
        room: int,
        *,
        peer: str,
        expect: Mapping[str, int],
        have: Mapping[str, int] | None = None,
    ) -> "ChunkStream":
        """The room's chunks as they land; `peer` is bootstrap_host:bootstrap_port.

        `expect` says how many items of each component the request has, `have` how many leading
        ones are here already and need not come.
        """
        intake = Intake(self._conversation, room=room, peer=peer, expect=expect, have=have or {})
        return ChunkStream(self._line, intake)

    def pull(
        self,
        room: int,
        *,
        peer: str,
        expect: Mapping[str, int],
        have: Mapping[str, int] | None = None,
    ) -> Arrival:
        """The whole request, copied out of the arena; `release` it once it is used.

        For small requests and for tests: `stream` scatters without the copy, and sooner.
        """
        collector = Collector(expect)
        stream = self.stream(room, peer=peer, expect=expect, have=have)
        with stream.given_up_on_error():
            for chunk in stream:
                collector.add(chunk)
            stream.give_back()
        self._pulled[room] = stream
        return collector.arrival(stream.intake)

    def release(self, room: int) -> None:
        """What was pulled is used. TransferFailed here means that it must not be."""
        stream = self._pulled.pop(room, None)
        if stream is None:
            raise misused(f"room {room} has not arrived, or has ended")
        stream.release()

    def close(self) -> None:
        self._line.close()
        self._conversation.leave()


class ChunkStream:
    """One request's chunks, once through; each is valid until the next one is asked for.

    The request is whole and verified when the iteration ends, and may be used after the `with`
    block, which then releases it. Leaving the block early, or by an error, gives the request up.
    """

    def __init__(self, line: Line, intake: Intake) -> None:
        self.intake = intake
        self._line = line
        self._answers = Answers()

    @property
    def aux(self) -> bytes:
        """What prefill sent beside the chunks; empty until the iteration has ended."""
        return self.intake.aux

    @property
    def prefill_pod(self) -> str:
        return self.intake.prefill_pod

    @property
    def prefill_ranks(self) -> int:
        """Tensor parallelism of the other side, known from the first chunk on."""
        return self.intake.prefill_ranks

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self.intake.consumed:
            self.release()
        else:
            self._close(str(error or "left before its last chunk"))

    def release(self) -> None:
        """What has come whole is used from here on; TransferFailed where it must not be."""
        failure = self.intake.spoiled
        if failure is not None:
            self._close(str(failure))
            raise failure
        self._say(self.intake.release())

    @contextlib.contextmanager
    def given_up_on_error(self) -> Iterator[None]:
        self._open()
        try:
            yield
        except BaseException as error:
            self._close(str(error))
            raise

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._say(self.intake.done_with_current())
        while (chunk := self.intake.next()) is None:
            if self.intake.consumed:
                raise StopIteration
            self.intake.take(self._line.take(self._answers))
        return chunk

    def give_back(self) -> None:
        """What has been scattered, now rather than with the release."""
        self._say(self.intake.give_back())

    def _open(self) -> None:
        self._line.open(self.intake.number, self.intake.opening, self._answers)

    def _close(self, reason: str) -> None:
        with contextlib.suppress(TransferFailed):  # the agent is gone, and its memory with it
            self._say(self.intake.close(reason))

    def _say(self, word: bytes) -> None:
        if word:
            self._line.send(word)
