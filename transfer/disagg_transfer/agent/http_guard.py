"""Between the socket and aiohttp, which waits for a request's head without limit."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web

from disagg_transfer.agent.waiting_room import WaitingRoom

MAX_CONNECTIONS: Final = 256
ASK_S: Final = 15.0  # to a whole request; after one, to have read the answer and ask again
ANSWER_S: Final = 90.0  # a report may be waited for

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard(asyncio.Protocol):
    """One connection. It stands in the waiting room unless a request of its own is answered."""

    def __init__(self, inner: asyncio.Protocol, room: WaitingRoom) -> None:
        self._inner, self._room = inner, room
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._room.enter(self._transport)
        self._within(ASK_S)
        self._inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._room.leave(self._transport)
        self._stop_clock()
        self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def answering(self) -> None:
        self._asked = True
        self._room.serve(self._transport)
        self._within(ANSWER_S)

    def waiting(self) -> None:
        if not self._transport.is_closing():
            self._room.enter(self._transport)
            self._within(ASK_S)

    def _within(self, seconds: float) -> None:
        self._stop_clock()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._late, seconds)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _late(self, seconds: float) -> None:
        if self._asked:  # kept alive and idle, or a slow reader: an acquaintance
            self._transport.abort()
            return
        self._room.turn_away(self._transport, "timeout", f"no request within {seconds:g} s")


@web.middleware
async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection's guard when a request of it is being answered."""
    transport = request.transport
    guard = transport.get_protocol() if isinstance(transport, asyncio.Transport) else None
    if not isinstance(guard, Guard):
        return await handler(request)
    guard.answering()
    try:
        return await handler(request)
    finally:
        guard.waiting()
