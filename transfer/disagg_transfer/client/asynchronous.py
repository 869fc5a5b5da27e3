"""The asyncio client: what AgentClient does, for an engine that runs in one event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from disagg_transfer.client import registration
from disagg_transfer.client.arena import OpenOnGpu
from disagg_transfer.client.conversation import (
    Ask,
    Conversation,
    Frames,
    agent_gone,
    is_last,
    misused,
)
from disagg_transfer.client.intake import Collector, Intake
from disagg_transfer.client.values import Arrival, Chunk, Component, Extent
from disagg_transfer.errors import TransferFailed, WireError

_READ_BYTES: Final = 1 << 16
T = TypeVar("T")


class AsyncLine:
    """The asyncio transport: one connection, a task that hands each answer to who waits for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lost = asyncio.Event()
        self._reader, self._writer = reader, writer
        self._pending: dict[int, Callable[[Any], None]] = {}  # by call: where its answers go
        self._reading = asyncio.create_task(self._read())

    async def ask(self, ask: Ask[T]) -> T:
        answers: asyncio.Queue[Any] = asyncio.Queue()
        await self.open(ask.call, ask.frame, answers.put_nowait)
        return ask.answered(await answers.get())

    async def open(self, call: int, opening: bytes, put: Callable[[Any], None]) -> None:
        self._pending[call] = put
        await self.send(opening)

    async def send(self, data: bytes) -> None:
        if self.lost.is_set():
            raise agent_gone()
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError as error:
            raise agent_gone() from error

    async def close(self) -> None:
        self._writer.close()
        await self._reading

    async def _read(self) -> None:
        frames = Frames()
        try:
            while data := await self._reader.read(_READ_BYTES):
                for answer in frames.feed(data):
                    self._pass_on(answer)
        except (OSError, WireError):
            self._writer.close()
        self.lost.set()
        pending, self._pending = self._pending, {}
        for put in pending.values():
            put(agent_gone())

    def _pass_on(self, answer: Any) -> None:
        put = self._pending.get(answer.call)
        if is_last(answer):
            self._pending.pop(answer.call, None)
        if put is not None:
            put(answer)


class AsyncAgentClient:
    """A registered engine; when the agent goes, `lost` is set and `connect` has to be called again.

    Each method is as AgentClient's of the same name; a cancelled call leaves its room as it is.
    """

    def __init__(self, line: AsyncLine, conversation: Conversation) -> None:
        self._line, self._conversation = line, conversation
        self._pulled: dict[int, AsyncChunkStream] = {}  # by room, until released

    @property
    def lost(self) -> asyncio.Event:
        return self._line.lost

    @property
    def arena(self) -> memoryview:
        return self._conversation.arena.whole

    @classmethod
    async def connect(
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
    ) -> "AsyncAgentClient":
        """RegistrationError when the agent refuses, AgentUnavailableError when it is late."""
        connection = await asyncio.to_thread(
            registration.connect,
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
        reader, writer = await asyncio.open_unix_connection(sock=connection.socket)
        return cls(AsyncLine(reader, writer), Conversation(connection.arena, components))

    async def begin(self, room: int, *, reserve: Sequence[int] = ()) -> tuple[Extent, ...]:
        return await self._line.ask(self._conversation.begin(room, reserve))

    async def reserve(self, room: int, nbytes: int, *, timeout_s: float) -> Extent:
        return (await self.reserve_all(room, (nbytes,), timeout_s=timeout_s))[0]

    async def reserve_all(
        self, room: int, sizes: Sequence[int], *, timeout_s: float
    ) -> tuple[Extent, ...]:
        return await self._line.ask(self._conversation.reserve(room, sizes, timeout_s))

    async def offer(
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
        await self._line.send(word)

    async def wanted(self, room: int) -> Mapping[str, int]:
        return await self._line.ask(self._conversation.wanted(room))

    async def wait_released(self, room: int, timeout_s: float) -> None:
        await self._line.ask(self._conversation.wait_released(room, timeout_s))

    async def abort(self, room: int, detail: str) -> None:
        pulled = self._pulled.pop(room, None)
        await self._line.ask(self._conversation.abort(room, detail, stopped=True))
        if pulled is not None:
            self._conversation.forget(pulled.intake.number)

    async def cancel(self, room: int, detail: str) -> None:
        await self._line.ask(self._conversation.abort(room, detail, stopped=False))

    async def refuse(self, room: int, *, detail: str, peer: str = "") -> None:
        await self._line.ask(self._conversation.refuse(room, detail=detail, peer=peer))

    def stream(
        self,
        room: int,
        *,
        peer: str,
        expect: Mapping[str, int],
        have: Mapping[str, int] | None = None,
    ) -> "AsyncChunkStream":
        intake = Intake(self._conversation, room=room, peer=peer, expect=expect, have=have or {})
        return AsyncChunkStream(self._line, intake)

    async def pull(
        self,
        room: int,
        *,
        peer: str,
        expect: Mapping[str, int],
        have: Mapping[str, int] | None = None,
    ) -> Arrival:
        collector = Collector(expect)
        stream = self.stream(room, peer=peer, expect=expect, have=have)
        async with stream.given_up_on_error():
            async for chunk in stream:
                collector.add(chunk)
            await stream.give_back()
        self._pulled[room] = stream
        return collector.arrival(stream.intake)

    async def release(self, room: int) -> None:
        stream = self._pulled.pop(room, None)
        if stream is None:
            raise misused(f"room {room} has not arrived, or has ended")
        await stream.release()

    async def close(self) -> None:
        await self._line.close()
        self._conversation.leave()


class AsyncChunkStream:
    """As ChunkStream, with `async with` and `async for`."""

    def __init__(self, line: AsyncLine, intake: Intake) -> None:
        self.intake = intake
        self._line = line
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def aux(self) -> bytes:
        return self.intake.aux

    @property
    def prefill_pod(self) -> str:
        return self.intake.prefill_pod

    @property
    def prefill_ranks(self) -> int:
        """Tensor parallelism of the other side, known from the first chunk on."""
        return self.intake.prefill_ranks

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self.intake.consumed:
            await self.release()
        else:
            await self._close(str(error or "left before its last chunk"))

    async def release(self) -> None:
        failure = self.intake.spoiled
        if failure is not None:
            await self._close(str(failure))
            raise failure
        await self._say(self.intake.release())

    @contextlib.asynccontextmanager
    async def given_up_on_error(self) -> AsyncIterator[None]:
        await self._open()
        try:
            yield
        except BaseException as error:
            await self._close(str(error))
            raise

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        await self._say(self.intake.done_with_current())
        while (chunk := self.intake.next()) is None:
            if self.intake.consumed:
                raise StopAsyncIteration
            self.intake.take(await self._answers.get())
        return chunk

    async def give_back(self) -> None:
        await self._say(self.intake.give_back())

    async def _open(self) -> None:
        await self._line.open(self.intake.number, self.intake.opening, self._answers.put_nowait)

    async def _close(self, reason: str) -> None:
        with contextlib.suppress(TransferFailed):  # the agent is gone, and its memory with it
            await self._say(self.intake.close(reason))

    async def _say(self, word: bytes) -> None:
        if word:
            await self._line.send(word)
