"""What this pod has for each of its engine ranks: an arena, a lane, an engine and its desk."""

import asyncio

from disagg_transfer.agent.engine import Desk, Engine
from disagg_transfer.agent.memory import RankMemory, fabric_of, open_memory
from disagg_transfer.agent.session import fabric_name
from disagg_transfer.agent.storage import Storage
from disagg_transfer.contract import Role
from disagg_transfer.lane import Lane
from disagg_transfer.protocol import Identity, Layout
from disagg_transfer.settings import Settings


class Rank:
    """One engine rank by its global number; ranks share nothing but the control connections."""

    desk: Desk

    def __init__(self, number: int, *, us: Identity, settings: Settings) -> None:
        self.number = number
        self._local = number - us.held.start
        self._us, self._settings = us, settings
        self._generation = 0
        self.engine: Engine | None = None
        self.open = asyncio.Event()  # for engines
        self.open.set()
        self.memory, self.lane = self._make()
        self.storage = Storage(self.memory, limits=settings.quarantine)
        self.metadata = b""  # of the lane, once it has started

    def _make(self) -> tuple[RankMemory, Lane]:
        settings = self._settings
        memory = open_memory(settings.arena_memory, settings.arena_bytes, local_rank=self._local)
        lane = Lane(
            fabric_name(self._us, self.number, generation=self._generation),
            base=memory.base,
            size=memory.size,
            ucx=settings.ucx,
            passive=settings.role is Role.PREFILL,
            open_fabric=fabric_of(memory),
        )
        return memory, lane

    async def renew(self, *, timeout_s: float) -> None:
        """Another arena and another lane; whoever uses the old ones keeps them."""
        self._generation += 1
        memory, lane = self._make()
        self.metadata = await asyncio.to_thread(lane.start, timeout_s=timeout_s)
        self.memory, self.lane = memory, lane
        self.storage = Storage(memory, limits=self._settings.quarantine)

    def start(self, *, timeout_s: float) -> None:
        """Blocks until NIXL is up; FabricError when it is not in time."""
        self.metadata = self.lane.start(timeout_s=timeout_s)

    @property
    def layout(self) -> Layout | None:
        """What peers are told of the registered engine."""
        if self.engine is None:
            return None
        return Layout(
            rank=self.number,
            epoch=self.engine.epoch,
            fingerprint=self.engine.fingerprint,
            fabric_name=self.lane.name,
            fabric_metadata=self.metadata,
            arena_base=self.memory.base,
            arena_bytes=self.memory.size,
        )
