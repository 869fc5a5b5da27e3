"""One request's chunks as the agent hands them out, without any I/O; transports wait and send."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from disagg_transfer.client.conversation import Ask, Conversation, misused
from disagg_transfer.client.values import Arrival, Chunk, Payload
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.engine_messages import Arrived, ArrivedChunk
from disagg_transfer.errors import TransferFailed

# Memory given back while more chunks are at hand goes by itself only when it is worth a message.
_WORTH_BYTES: Final = 1 << 20


class Intake:
    def __init__(
        self,
        conversation: Conversation,
        *,
        room: int,
        peer: str,
        expect: Mapping[str, int],
        have: Mapping[str, int],
    ) -> None:
        self.room = room
        self.number, self.opening = conversation.stream(room, peer=peer, expect=expect, have=have)
        self.aux, self.prefill_pod, self.prefill_ranks = b"", "", 0
        self.whole = False  # nothing more will come
        self._release_by = 0  # of the monotonic clock, in ms
        self._conversation = conversation
        self._waits_for = Ask(call=self.number, frame=self.opening, read=self._keep)
        self._ready: deque[ArrivedChunk] = deque()
        self._spent: list[int] = []
        self._spent_bytes = 0
        self._current: ArrivedChunk | None = None
        self._handed = False  # the agent has lent memory of it
        self._failed = False

    def take(self, answer: Any) -> None:
        """An answer of the stream's own; TransferFailed when the request has failed."""
        try:
            self._waits_for.answered(answer)
        except TransferFailed:
            self._failed = True
            self._ready.clear()
            raise

    def next(self) -> Chunk | None:
        """None when the agent has to be heard first, or the end has come."""
        if not self._ready:
            return None
        chunk = self._current = self._ready.popleft()
        return Chunk(
            component=chunk.component,
            source=chunk.source,
            first=chunk.first,
            items=chunk.items,
            skip=chunk.skip,
            view=self._conversation.arena.host(chunk.offset, chunk.nbytes),
            on_gpu=self._conversation.arena.gpu(chunk.offset, chunk.nbytes),
        )

    def done_with_current(self) -> bytes:
        """The engine has scattered it: what to send now, if anything. The end says the rest."""
        if self._current is not None:
            self._spent.append(self._current.extent)
            self._spent_bytes += self._current.nbytes
            self._current = None
        worth = not self._ready or self._spent_bytes >= _WORTH_BYTES
        return self.give_back() if worth and not self.consumed else b""

    def give_back(self) -> bytes:
        extents, self._spent, self._spent_bytes = self._spent, [], 0
        return self._conversation.give_back(self.number, extents) if extents else b""

    def release(self) -> bytes:
        """The engine is through with it: the frame to send. In time, so that the request counts."""
        return self._conversation.release(self.number)

    @property
    def spoiled(self) -> TransferFailed | None:
        """Why it must not be used, be it whole or not."""
        aborted = self._conversation.aborted(self.number)
        if aborted is not None:
            return self._failure(Cause.ABORTED, aborted)
        if not self.consumed:
            return misused(f"room {self.room} is released before its last chunk was taken")
        if time.monotonic() * 1000 > self._release_by:
            late = "the engine did not take the request out of the arena and release it in time"
            return self._failure(Cause.TIMEOUT, late)
        return None

    def _failure(self, cause: Cause, detail: str) -> TransferFailed:
        return TransferFailed(cause, stage=Stage.SCATTER, detail=detail, peer_pod=self.prefill_pod)

    @property
    def consumed(self) -> bool:
        return self.whole and not self._ready

    def close(self, reason: str) -> bytes:
        """What to send when it is not released: a failed one may still hold the agent's memory."""
        detail = f"the decode engine gave up: {reason}"
        tell = self._handed or not self._failed
        return self._conversation.close_stream(self.number, detail, tell=tell)

    def _keep(self, answer: Arrived) -> None:
        self._ready.extend(answer.chunks)
        self._handed |= bool(answer.chunks)
        self.prefill_pod, self.prefill_ranks = answer.prefill_pod, answer.prefill_ranks
        if answer.ended:
            self.whole, self.aux, self._release_by = True, answer.aux, answer.release_by


class Collector:
    """A whole request in memory of its own, out of its chunks."""

    def __init__(self, expect: Mapping[str, int]) -> None:
        self._expect = expect
        self._chunks: dict[str, list[Chunk]] = {name: [] for name in expect}
        self._memory: dict[tuple[str, int], memoryview] = {}  # by component and source

    def add(self, chunk: Chunk) -> None:
        if chunk.on_gpu is not None:
            raise misused("pull() copies to host memory, the arena is on a GPU: use stream()")
        size = len(chunk.view) // chunk.items
        key = (chunk.component, chunk.source)
        if key not in self._memory:
            self._memory[key] = memoryview(bytearray(self._expect[chunk.component] * size))
        start = chunk.first * size
        view = self._memory[key][start : start + len(chunk.view)]
        view[:] = chunk.view
        self._chunks[chunk.component].append(replace(chunk, view=view))

    def arrival(self, intake: Intake) -> Arrival:
        return Arrival(
            payloads={name: self._payload(name) for name in self._expect},
            aux=intake.aux,
            prefill_pod=intake.prefill_pod,
            prefill_ranks=intake.prefill_ranks,
        )

    def _payload(self, name: str) -> Payload:
        sources = sorted(source for component, source in self._memory if component == name)
        views = [self._memory[name, source] for source in sources]
        return Payload(
            items=self._expect[name],
            chunks=tuple(sorted(self._chunks[name], key=lambda c: (c.source, c.first))),
            view=views[0] if len(views) == 1 else memoryview(b"".join(views)),
        )
