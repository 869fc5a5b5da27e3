"""Connections of strangers: few at a time, and the one that has waited longest makes room.

Turning the newcomer away would be simpler, and would let somebody who opens connections and says
nothing keep every peer out. A peer's handshake takes milliseconds, so it is not the oldest.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

LOG_EVERY_S: Final = 1.0  # for each reason; a flood must not become a flood of log lines

_log = logging.getLogger(__name__)


class WaitingRoom:
    def __init__(self, *, seats: int, count: Callable[[str], None], what: str) -> None:
        self._seats, self._count, self._what = seats, count, what
        self._waiting: dict[asyncio.WriteTransport, None] = {}  # in order of arrival
        self._served: dict[asyncio.WriteTransport, None] = {}
        self._logged: dict[str, tuple[float, int]] = {}  # when, and how many since

    def enter(self, transport: asyncio.WriteTransport) -> None:
        """Also back from being served."""
        if self._served.pop(transport, self) is self:
            self._make_room()
        self._waiting[transport] = None

    def serve(self, transport: asyncio.WriteTransport) -> None:
        """It keeps its seat, and goes only when nobody is waiting."""
        if self._waiting.pop(transport, self) is None:
            self._served[transport] = None

    def leave(self, transport: asyncio.WriteTransport) -> bool:
        """False if it has been turned away meanwhile."""
        return None in (self._waiting.pop(transport, self), self._served.pop(transport, self))

    def turn_away(self, transport: asyncio.WriteTransport, reason: str, detail: str) -> None:
        self.leave(transport)
        self.refuse(transport, reason, detail)
        transport.abort()

    def refuse(self, transport: asyncio.WriteTransport, reason: str, detail: str) -> None:
        """What it asked for; the connection may stay."""
        self._count(reason)
        self._tell(transport, reason, detail)

    def _make_room(self) -> None:
        if len(self._waiting) + len(self._served) >= self._seats:
            oldest = next(iter(self._waiting or self._served))
            self.turn_away(oldest, "crowded", f"{self._seats} connections are open already")

    def _tell(self, transport: asyncio.WriteTransport, reason: str, detail: str) -> None:
        at, silent = self._logged.get(reason, (-LOG_EVERY_S, 0))
        now = time.monotonic()
        if now - at < LOG_EVERY_S:
            self._logged[reason] = (at, silent + 1)
            return
        self._logged[reason] = (now, 0)
        since = f" ({silent} more since the last such line)" if silent else ""
        peer = transport.get_extra_info("peername")
        _log.warning("%s refused %s: %s%s", self._what, peer, detail, since)
