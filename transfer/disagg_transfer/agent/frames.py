"""One connection's frames: asked for one by one, then handed on in the turn in which they come.

asyncio's StreamReader wakes a task for the length and for the rest of each frame; a small request
has five frames between those who wait for it, and a request of many chunks two for each of them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from disagg_transfer.agent.ports import spawning
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.codec import unframed

_READ_BYTES: Final = 4 << 10  # of each connection, strangers' too: few frames are longer
_UNASKED_BYTES: Final = 16 << 10  # held of a connection that nobody asks for its next frame


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many bytes a frame may have."""

    low: int
    high: int


class FrameStream(asyncio.BufferedProtocol):
    """Read into memory of its own: for a Protocol asyncio maps and unmaps 256 KiB at every read,
    13 us on an idle machine, more where other threads of the process run.
    """

    transport: asyncio.Transport

    def __init__(self, accept: "Callable[[FrameStream], None] | None" = None) -> None:
        """`accept` is called once the connection is there."""
        self._accept = accept
        self._read = memoryview(bytearray(_READ_BYTES))
        self._data = bytearray()
        self._bounds = Bounds(0, _UNASKED_BYTES)
        self._take: Callable[[bytes], None] | None = None
        self._end: Exception | None = None
        self._moved = Pulse()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def next(self, bounds: Bounds) -> bytes:
        """IncompleteReadError or OSError at the connection's end, WireError for a frame that is not
        within `bounds`.
        """
        self._bounds = bounds
        while (body := self._pop()) is None:
            if self._end is not None:
                raise self._end
            self.transport.resume_reading()
            await self._moved.wait()
        return body

    async def each(self, bounds: Bounds, take: Callable[[bytes], None]) -> NoReturn:
        """Hand on every frame until the connection ends; raises what `next` does, or `take` has."""
        self._bounds, self._take = bounds, take
        self._hand_on(take)
        self.transport.resume_reading()
        while self._end is None:
            await self._moved.wait()
        raise self._end

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._accept is not None:
            self._accept(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self._data += self._read[:nbytes]
        if self._take is not None:
            self._hand_on(self._take)
            return
        if len(self._data) > self._bounds.high:
            self.transport.pause_reading()
        self._moved.fire()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(error or asyncio.IncompleteReadError(bytes(self._data), None))

    def _hand_on(self, take: Callable[[bytes], None]) -> None:
        try:
            while not self.transport.is_closing() and (body := self._pop()) is not None:
                take(body)
        except Exception as error:  # noqa: BLE001  (it is for who awaits `each`)
            self._ended(error)
            self.transport.abort()

    def _ended(self, error: Exception) -> None:
        self._end = self._end or error
        self._moved.fire()

    def _pop(self) -> bytes | None:
        return unframed(self._data, low=self._bounds.low, high=self._bounds.high)


def accepting(
    handle: Callable[[FrameStream], Coroutine[Any, Any, None]],
) -> Callable[[], FrameStream]:
    """Makes the streams of a server, each with a task of its own that handles it."""
    accept = spawning(handle)
    return lambda: FrameStream(accept)
