"""A try at a peer's fabric that the lane need not wait for.

Loading a peer that cannot be connected to blocks NIXL's caller for seconds (5 s with lost packets,
measured), and so every read of the lane. A scout is a lane of its own for one try, with a page of
memory of its own: it loads the peer, reads a page of its arena, and is gone.
"""

import asyncio
import mmap
from collections.abc import Callable
from typing import Final

import numpy as np

from disagg_transfer.errors import FabricError
from disagg_transfer.lane import Lane, ReadEvent
from disagg_transfer.protocol import Layout

BYTES: Final = 4096
_START_S: Final = 10.0
_CLOSE_S: Final = 1.0


class Scout:
    def __init__(self, lane: Lane, *, number: int) -> None:
        self._memory = mmap.mmap(-1, BYTES)
        self._base = int(np.frombuffer(self._memory, dtype=np.uint8).ctypes.data)
        self._lane = lane.sibling(f"{lane.name}/scout-{number}", base=self._base, size=BYTES)

    async def look(self, layout: Layout) -> None:
        """Return when a page has been read; FabricError says why it cannot be.

        Returns late where NIXL is: its memory may be written until the read has ended.
        """
        ended = asyncio.create_task(self._look(layout))
        ended.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(ended)  # a caller that leaves does not end it

    async def _look(self, layout: Layout) -> None:
        await asyncio.to_thread(self._lane.start, timeout_s=_START_S)
        try:
            await called(
                lambda done: self._lane.add_peer(layout.fabric_name, layout.fabric_metadata, done)
            )
            await self._read(layout)
        finally:
            await asyncio.to_thread(self._lane.close, timeout_s=_CLOSE_S)

    async def _read(self, layout: Layout) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[ReadEvent, str]] = loop.create_future()

        def listen(event: ReadEvent, detail: str) -> None:
            if event is not ReadEvent.POSTED:
                loop.call_soon_threadsafe(ended.set_result, (event, detail))

        self._lane.read(
            layout.fabric_name,
            local=self._base,
            remote=layout.arena_base,
            nbytes=min(BYTES, layout.arena_bytes),
            listener=listen,
        )
        event, detail = await ended
        if event is not ReadEvent.DONE:
            raise FabricError(detail)


async def called(call: Callable[[Callable[[FabricError | None], None]], None]) -> None:
    """Wait for a lane's answer to a call; raises what it says."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[FabricError | None] = loop.create_future()

    def told(error: FabricError | None) -> None:
        if not answer.done():
            answer.set_result(error)

    def finished(error: FabricError | None) -> None:
        loop.call_soon_threadsafe(told, error)

    call(finished)
    error = await answer
    if error is not None:
        raise error
