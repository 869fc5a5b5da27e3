"""What the loops of all resources share."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_operator.census import Census
from disagg_operator.gateway import Gateway
from disagg_operator.metrics import Metrics
from disagg_operator.render import Images
from disagg_operator.reports import Owner, ReportFeed
from disagg_operator.root_key import RootKey
from disagg_operator.router_feed import RouterFeed
from disagg_operator.settings import Settings


class Wakeups:
    """Which loops have something new to look at."""

    def __init__(self) -> None:
        self._events: dict[Owner, asyncio.Event] = {}

    def register(self, owner: Owner) -> asyncio.Event:
        self._events[owner] = asyncio.Event()
        return self._events[owner]

    def forget(self, owner: Owner) -> None:
        self._events.pop(owner, None)

    def wake(self, owner: Owner) -> None:
        if owner in self._events:
            self._events[owner].set()

    @property
    def waiting(self) -> int:
        """Loops that were woken and have not begun their pass."""
        return sum(event.is_set() for event in self._events.values())

    def __len__(self) -> int:
        return len(self._events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What all loops of the process share."""

    settings: Settings
    gateway: Gateway
    feed: ReportFeed
    routers: RouterFeed
    wakeups: Wakeups
    census: Census
    metrics: Metrics
    instance: str
    clock: Callable[[], float] = time.time
    root: RootKey = field(default_factory=RootKey.random)
    # Start of the pass that is on, by resource: for the liveness probe.
    running: dict[Owner, float] = field(default_factory=dict)

    @property
    def images(self) -> Images:
        return Images(
            agent=self.settings.agent_image,
            engine=self.settings.engine_image,
            router=self.settings.router_image,
        )
