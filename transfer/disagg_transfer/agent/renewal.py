"""Lanes that stay poisoned are made anew, each by itself.

What settles by itself has settled within the transports' own limits; a lane that is poisoned for
longer waits for reads that may never end. Its engine is disconnected, which ends its requests, and
a new arena and a new NIXL agent of another name take its place; the engine registers again by
itself, and peers learn the new name with its layout. Other lanes and the connections to peers are
not touched. The old lane polls on: its memory is mapped until nothing can be written into it any
more. There is one such lane at a time for each rank. A second one ends the agent's liveness, since
only the end of the process is sure to end such reads, and memory is not without end.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Final, Protocol

from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.storage import Storage
from disagg_transfer.lane import Lane

LOOK_S: Final = 0.25
_START_S: Final = 60.0
_CLOSE_S: Final = 5.0

_log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What else of the agent has to do with a rank."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """NIXL agents are made inside of it."""

    async def evict(self, rank: Rank) -> None:
        """Return when no engine is connected as this rank; none may come until it is open."""

    def detach(self, rank: Rank) -> None:
        """Sessions use its lane no more."""

    def attach(self, rank: Rank) -> None:
        """Give it a desk."""


class Renewal:
    def __init__(
        self, ranks: Iterable[Rank], *, remake_s: float, surroundings: Surroundings
    ) -> None:
        self._ranks, self._remake_s = tuple(ranks), remake_s
        self._surroundings = surroundings
        self._since: dict[int, float] = {}  # poisoned ranks, and since when
        self._retired: dict[int, asyncio.Task[None]] = {}

    @property
    def hopeless(self) -> bool:
        """A lane is poisoned for long, and the one before it has not settled either."""
        return any(self._overdue(rank) and self._waits(rank) for rank in self._ranks)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now = asyncio.get_running_loop().time()
            for rank in self._ranks:
                if rank.storage.poison is None:
                    self._since.pop(rank.number, None)
                    continue
                self._since.setdefault(rank.number, now)
                if self._overdue(rank) and not self._waits(rank):
                    await self._renew(rank)

    def _overdue(self, rank: Rank) -> bool:
        since = self._since.get(rank.number)
        return since is not None and asyncio.get_running_loop().time() - since > self._remake_s

    def _waits(self, rank: Rank) -> bool:
        retired = self._retired.get(rank.number)
        return retired is not None and not retired.done()

    async def _renew(self, rank: Rank) -> None:
        _log.error("lane %s is made anew: %s", rank.lane.name, rank.storage.poison)
        rank.open.clear()
        await self._surroundings.evict(rank)
        self._surroundings.detach(rank)
        retired = _retire(rank.lane, rank.storage)
        settled = rank.storage.late_settled
        with self._surroundings.opened():
            await rank.renew(timeout_s=_START_S)
        rank.storage.late_settled = settled  # it counts from the agent's start
        self._retired[rank.number] = asyncio.create_task(retired)
        self._surroundings.attach(rank)
        self._since.pop(rank.number, None)
        rank.open.set()


async def _retire(lane: Lane, storage: Storage) -> None:
    """Let go of a lane once nothing writes into its memory."""
    while lane.busy or storage.unsettled:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await storage.freed.wait()
    await asyncio.to_thread(lane.close, timeout_s=_CLOSE_S)
    if lane.alive:
        _log.error("lane %s does not end; its memory is kept", lane.name)
        return
    with contextlib.suppress(BufferError):  # a digest of it is being taken: it goes with that
        storage.memory.close()
    _log.info("lane %s has settled, and its %d bytes are free", lane.name, storage.memory.size)
