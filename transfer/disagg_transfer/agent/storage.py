"""The arena with a queue in front of it: who does not get room at once waits in turn.

The oldest request is first in the queue, whichever of its chunks it asks for, and nobody passes
it: so a request that has begun is finished rather than many held up half way.
"""

import asyncio
import itertools
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.quarantine import Quarantine
from disagg_transfer.arena import ALIGNMENT, Extents, Memory, Span
from disagg_transfer.contract import ENV_ARENA_BYTES, Cause, Stage
from disagg_transfer.errors import ArenaFull
from disagg_transfer.limits import QuarantineLimits

MAX_WAITING: Final = 1024  # beyond this the arena says full at once: back-pressure, not a queue


Turn = asyncio.Future[tuple[Span, ...]]


@dataclass(slots=True, order=True)
class _Waiting:
    begun_at: float  # of the request
    number: int
    sizes: Sequence[int] = field(compare=False)
    turn: Turn = field(compare=False)


class Storage:
    def __init__(self, memory: Memory, *, limits: QuarantineLimits) -> None:
        self.memory = memory
        self._quarantine = Quarantine(limits, arena_bytes=memory.size)
        self._extents = Extents(memory.size)
        self.freed = Pulse()
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self.late_settled = 0  # extents that came back from quarantine
        self._spared: dict[int, int] = {}  # bytes that samples hold, by number of the extent

    @property
    def used(self) -> int:
        """By requests: what samples hold is as good as free, they ask for it only while it is."""
        return self._extents.used - sum(self._spared.values())

    @property
    def unsettled(self) -> int:
        return self._extents.unsettled

    def reserve_now(self, sizes: Sequence[int]) -> tuple[Span, ...] | None:
        """All of them, or None where they are not free or others wait already."""
        self._refuse_impossible(sizes)
        return None if self._waiting else self._extents.reserve_all(sizes)

    async def reserve(self, sizes: Sequence[int], *, begun_at: float) -> tuple[Span, ...]:
        """All of them at once, in turn by the request's beginning (monotonic seconds).

        Waits without limit; the caller holds the clock.
        """
        spans = self.reserve_now(sizes)
        if spans is not None:
            return spans
        turn: Turn = asyncio.get_running_loop().create_future()
        insort(self._waiting, _Waiting(begun_at, next(self._numbers), sizes, turn))
        self._grant()
        try:
            return await turn
        except asyncio.CancelledError:
            self._withdraw(turn)
            raise

    def spare(self, nbytes: int) -> Span | None:
        """An extent for what can wait: None where anybody waits, or beyond half of the arena."""
        reach = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if self._waiting or (self._extents.used + reach) * 2 > self.memory.size:
            return None
        span = self._extents.reserve(nbytes)
        if span is not None:
            self._spared[span.number] = reach
        return span

    def free(self, span: Span) -> None:
        self._extents.free(span)
        self._spared.pop(span.number, None)
        self._grant()
        self.freed.fire()

    @property
    def poison(self) -> str | None:
        """Why this lane takes no more requests for now."""
        return self._quarantine.poison(_now())

    def quarantine(self, span: Span, *, writer: str) -> None:
        """Out of reach until `settle`: `writer`, in words, may still write it."""
        self._extents.quarantine(span)
        self._spared.pop(span.number, None)
        self._quarantine.put(span, writer=writer, now=_now())

    def settle(self, span: Span) -> None:
        self.late_settled += 1
        self._extents.settle(span)
        self._quarantine.take(span)
        self._grant()
        self.freed.fire()

    def write(self, span: Span, data: bytes) -> None:
        self.memory.write(span, data)

    def zero(self, span: Span) -> None:
        self.memory.zero(span)

    async def digest(self, span: Span) -> bytes:
        found = self.digest_now(span)
        return await asyncio.to_thread(self.memory.digest, span) if found is None else found

    def digest_now(self, span: Span) -> bytes | None:
        """None where it would hold the loop up."""
        return self.memory.digest(span) if span.nbytes <= self.memory.inline_digest_bytes else None

    def _refuse_impossible(self, sizes: Sequence[int]) -> None:
        total = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        if total > self.memory.size:
            raise ArenaFull(
                Cause.ARENA_FULL,
                stage=Stage.ALLOCATE,
                detail=f"{total} bytes can never fit the arena of {self.memory.size}; "
                f"raise {ENV_ARENA_BYTES}",
            )
        if len(self._waiting) >= MAX_WAITING:
            raise ArenaFull(
                Cause.ARENA_FULL,
                stage=Stage.ALLOCATE,
                detail=f"{MAX_WAITING} requests wait for room in the arena already",
            )

    def _withdraw(self, turn: Turn) -> None:
        self._waiting = [entry for entry in self._waiting if entry.turn is not turn]
        if turn.done() and not turn.cancelled():
            for span in turn.result():
                self._extents.free(span)
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            spans = None if first.turn.done() else self._extents.reserve_all(first.sizes)
            if spans is None and not first.turn.done():
                return
            del self._waiting[0]
            if spans is not None:
                first.turn.set_result(spans)


def _now() -> float:
    return asyncio.get_running_loop().time()
