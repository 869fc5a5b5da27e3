"""How fast we ask: a token bucket for requests, growing pauses for failures."""

import asyncio
from collections.abc import Callable
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
