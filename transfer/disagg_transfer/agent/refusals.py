"""Prefill agents are told of rooms that this decode pod will never claim."""

import asyncio
import logging
from typing import Final

from disagg_transfer.agent.relay import tell
from disagg_transfer.agent.routes import Routes
from disagg_transfer.contract import Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import TransferFailed

MAX_REFUSALS: Final = 1024  # whose prefill agent is being looked for

_log = logging.getLogger(__name__)


class Refusals:
    def __init__(self, routes: Routes, *, timeouts: Timeouts) -> None:
        self._routes, self._timeouts = routes, timeouts
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, room: int, *, peer: str, failure: TransferFailed) -> None:
        """At once where a session is open; else as soon as one is, within bootstrap's deadline."""
        if len(self._tasks) >= MAX_REFUSALS:
            _log.warning("room %d is refused, and its peer not told: %d wait", room, MAX_REFUSALS)
            return
        task = asyncio.create_task(self._tell(room, peer, failure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, room: int, peer: str, failure: TransferFailed) -> None:
        try:
            async with asyncio.timeout(self._timeouts.limit(Stage.BOOTSTRAP)):
                sessions = await self._routes.meet(peer)
        except (TimeoutError, TransferFailed) as error:
            _log.warning("room %d is refused, and %s was not told: %s", room, peer, error)
            return
        for session in sessions:
            tell(session, room=room, request=None, failure=failure)
