"""How long to wait before the next try. Pure: chance comes in."""

import random
from collections.abc import Callable
from typing import Final

Chance = Callable[[], float]  # 0..1

FIRST_S: Final = 0.2
# Two agents restarted at once, or a hundred that lost one peer, must not try in step.
JITTER: Final = 0.25


class BackOff:
    """Seconds to wait, doubled with each failure up to a ceiling."""

    def __init__(
        self, *, ceiling_s: float, first_s: float = FIRST_S, chance: Chance = random.random
    ) -> None:
        self._first_s, self._ceiling_s, self._chance = first_s, ceiling_s, chance
        self.failures = 0  # in a row

    def failed(self) -> float:
        """One more failure; how long to wait now."""
        base = min(self._first_s * 2.0 ** min(self.failures, 32), self._ceiling_s)
        self.failures += 1
        return base * (1 - JITTER + 2 * JITTER * self._chance())

    def succeeded(self) -> None:
        self.failures = 0
