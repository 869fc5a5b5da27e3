"""Whether our lane can read from one peer: loaded, broken, loaded again and tried.

NIXL does not mend an endpoint that it has given up. After some seconds of lost packets every later
read of that peer fails at once, for ever, however well the two agents hear each other (measured).
So a link that breaks is a circuit breaker: requests are held back until a scout has read from the
peer, then the peer is removed and loaded again. Tries are spaced out more and more. A lost endpoint
breaks a link at once, late reads do when several come in a row.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from disagg_transfer.agent.backoff import BackOff
from disagg_transfer.agent.credits import Credits
from disagg_transfer.agent.scout import Scout, called
from disagg_transfer.errors import FabricError
from disagg_transfer.lane import Lane
from disagg_transfer.limits import CreditLimits
from disagg_transfer.protocol import Layout

LATE_IN_A_ROW: Final = 3
CEILING_S: Final = 10.0
TRIES_WAITED_FOR: Final = 2


class FabricLink:
    def __init__(
        self, layout: Layout, *, lane: Lane, limits: CreditLimits, changed: Callable[[], None]
    ) -> None:
        self.credits = Credits(limits)
        self.name = layout.fabric_name
        self.up = False
        self.met = False  # up once, at least
        self.reason = ""  # why it is broken
        self._layout, self._lane, self._changed = layout, lane, changed
        self._backoff = BackOff(ceiling_s=CEILING_S)
        self._late = 0
        self._next_try = 0.0
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._begin())

    @property
    def detail(self) -> str:
        """For people; empty when all is well."""
        if not self.reason:
            return ""
        wait_s = self._next_try - self._loop.time()
        again = f"next try in {wait_s:.1f} s" if wait_s > 0 else "being tried again"
        return (
            f"reads from it are held back, tries failed: {self._backoff.failures}: {self.reason}; "
            f"{again}"
        )

    @property
    def broken(self) -> bool:
        """Tried in vain often enough that no request should wait for it."""
        return bool(self.reason) and self._backoff.failures > TRIES_WAITED_FOR

    def close(self) -> None:
        """The session has ended; NIXL forgets the peer once no read of it is under way."""
        self.up = False
        self._task.cancel()
        self._lane.remove_peer(self.name, _ignore)

    def read_succeeded(self) -> None:
        self._late = 0

    def read_failed(self, reason: str, *, lost: bool) -> None:
        """`lost`: NIXL has given the endpoint up; else the read was late."""
        self._late += 1
        if self.up and (lost or self._late >= LATE_IN_A_ROW):
            self.up, self.reason = False, reason
            self._task = asyncio.create_task(self._mend())
            self._changed()

    async def _begin(self) -> None:
        try:
            await self._load()
        except FabricError as error:
            self.reason = f"NIXL does not take its metadata: {error}"
            await self._mend()
        else:
            self._went_up()

    async def _mend(self) -> None:
        while not self.up:
            wait_s = self._backoff.failed()
            self._next_try = self._loop.time() + wait_s
            self._changed()
            await asyncio.sleep(wait_s)
            try:
                await Scout(self._lane, number=self._backoff.failures).look(self._layout)
                with contextlib.suppress(FabricError):  # it may not be loaded
                    await called(lambda done: self._lane.remove_peer(self.name, done))
                await self._load()
            except FabricError as error:
                self.reason = str(error)
            else:
                self._went_up()

    def _went_up(self) -> None:
        self.up = self.met = True
        self.reason, self._late = "", 0
        self._backoff.succeeded()
        self._changed()

    async def _load(self) -> None:
        layout, lane = self._layout, self._lane
        await called(lambda done: lane.add_peer(self.name, layout.fabric_metadata, done))


def _ignore(_error: FabricError | None) -> None:
    """A peer NIXL has dropped by itself needs no removing."""
