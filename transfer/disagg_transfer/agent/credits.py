"""How much of one peer's may be on its way to us at a time; who comes over it waits in turn.

A read holds its credit until NIXL has ended it, so a peer whose reads never end keeps no more of
the arena than its credit: the other peers go on. Reads are counted, not requests: a request that
streams may move nothing for a minute, and would hold its place for nothing.
"""

import asyncio
from collections import deque

from disagg_transfer.limits import CreditLimits


class Credits:
    def __init__(self, limits: CreditLimits) -> None:
        self.limits = limits
        self._bytes = self._reads = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_use(self) -> str:
        return (
            f"{self._bytes} of {self.limits.nbytes} bytes and {self._reads} of "
            f"{self.limits.reads} reads"
        )

    def take_now(self, nbytes: int) -> bool:
        """False where the credit is used up, or others wait for it already."""
        if self._waiting or not self._fits(nbytes):
            return False
        self._take(nbytes)
        return True

    async def take(self, nbytes: int) -> None:
        """In turn; waits without limit, the caller holds the clock."""
        if self.take_now(nbytes):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(nbytes)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._grant()
            raise

    def give(self, nbytes: int) -> None:
        self._bytes -= nbytes
        self._reads -= 1
        self._grant()

    def _fits(self, nbytes: int) -> bool:
        """One read always may, however large."""
        limits = self.limits
        within = self._bytes + nbytes <= limits.nbytes and self._reads < limits.reads
        return within or not self._reads

    def _take(self, nbytes: int) -> None:
        self._bytes += nbytes
        self._reads += 1

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            nbytes, turn = self._waiting.popleft()
            if not turn.done():
                self._take(nbytes)
                turn.set_result(None)
