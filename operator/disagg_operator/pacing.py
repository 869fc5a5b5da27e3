"""How fast we ask: turns and a token bucket for requests, growing pauses for failures."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


def backoff_s(attempt: int, *, base_s: float, limit_s: float, jitter: float) -> float:
    """Pause after failed attempt number `attempt` (0 first): doubled each time, capped, then
    shortened by up to half by `jitter` in [0, 1), so that equals do not return together.
    """
    return min(limit_s, base_s * 2.0 ** min(attempt, 32)) * (1.0 - jitter / 2.0)


@dataclass(slots=True, kw_only=True)
class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up; callers queue in order."""

    rate: float
    burst: float
    clock: Callable[[], float]
    _tokens: float = -1.0
    _updated: float = 0.0

    async def take(self) -> None:
        pause = self._reserve()
        if pause > 0:
            await asyncio.sleep(pause)

    def _reserve(self) -> float:
        """Take one token now, on credit if need be; seconds until the credit is paid."""
        now = self.clock()
        if self._tokens < 0 and self._updated == 0.0:
            self._tokens = self.burst
        else:
            self._tokens = min(self.burst, self._tokens + (now - self._updated) * self.rate)
        self._updated = now
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self.rate)


class Turns:
    """At most `limit` at a time; who waits is served by rank, the lowest first, then in order."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @asynccontextmanager
    async def take(self, rank: int) -> AsyncIterator[None]:
        await self._wait(rank)
        try:
            yield
        finally:
            self._free += 1
            self._admit()

    async def _wait(self, rank: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._numbers), turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had been given the turn
                self._free += 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._free and self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
