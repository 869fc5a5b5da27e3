"""What the loops of all resources share."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_operator.gateway import Gateway
from disagg_operator.kinds import ObjectReference, Owner
from disagg_operator.metrics import Metrics
from disagg_operator.render import Images
from disagg_operator.reports import ReportFeed
from disagg_operator.root_key import RootKey
from disagg_operator.router_feed import RouterFeed
from disagg_operator.settings import Settings
from disagg_operator.store import Store
from disagg_operator.watches import Watches


class Wakeups:
    """Which loops have something new to look at."""

    def __init__(self) -> None:
        # Two of a name while the loop of a resource that was deleted unseen has not ended.
        self._events: dict[Owner, list[asyncio.Event]] = {}

    def register(self, owner: Owner) -> asyncio.Event:
        event = asyncio.Event()
        self._events.setdefault(owner, []).append(event)
        return event

    def forget(self, owner: Owner, event: asyncio.Event) -> None:
        events = self._events[owner]
        events.remove(event)
        if not events:
            del self._events[owner]

    def wake(self, owner: Owner) -> None:
        for event in self._events.get(owner, ()):
            event.set()

    @property
    def waiting(self) -> int:
        """Loops that were woken and have not begun their pass."""
        return sum(event.is_set() for events in self._events.values() for event in events)

    def __contains__(self, owner: Owner) -> bool:
        return owner in self._events

    def __len__(self) -> int:
        """Loops."""
        return sum(map(len, self._events.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What all loops of the process share."""

    settings: Settings
    gateway: Gateway
    feed: ReportFeed
    routers: RouterFeed
    wakeups: Wakeups
    store: Store
    watches: Watches
    metrics: Metrics
    instance: str
    clock: Callable[[], float] = time.time
    root: RootKey = field(default_factory=RootKey.random)
    # Start of the pass that is on, by resource: for the liveness probe.
    running: dict[ObjectReference, float] = field(default_factory=dict)

    @property
    def images(self) -> Images:
        return Images(
            agent=self.settings.agent_image,
            engine=self.settings.engine_image,
            router=self.settings.router_image,
        )
