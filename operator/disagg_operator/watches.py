"""Lists and watches every kind of ours, into the store.

Kopf's own watch holds whole lists in memory, a task for every object, and never tells of what was
deleted while it could not watch. Here a list comes in pages, and what it does not name is gone.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from disagg_operator.errors import (
    ApiError,
    ApiForbiddenError,
    ApiGoneError,
    LeadershipLostError,
)
from disagg_operator.gateway import Gateway
from disagg_operator.kinds import Json, Kind
from disagg_operator.pacing import backoff_s
from disagg_operator.store import Store

RETRY_BASE_S: Final = 0.2
RETRY_LIMIT_S: Final = 10.0
# The server ends each watch after 30 s, and a silent one is broken off after 40 s.
STUCK_AFTER_S: Final = 150.0
# A watch that ended sooner without a word is no use; it is not begun again at once.
BRIEF_S: Final = 1.0
logger = logging.getLogger(__name__)


class Watches:
    """All of them. What is no answer of the server ends them, and the group of tasks with them."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        store: Store,
        kinds: Iterable[Kind],
        namespaces: Iterable[str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._all = [
            Watch(
                gateway=gateway,
                store=store,
                kind=kind,
                namespace=namespace,
                clock=clock,
                on_listed=self._listed,
            )
            for kind in kinds
            for namespace in namespaces
        ]
        self._clock = clock

    def complete(self, namespace: str | None) -> bool:
        """Whether the store has had everything once, of one namespace or (None) of all: what is not
        in it then is not there.
        """
        return all(
            watch.listed
            for watch in self._all
            if None in {namespace, watch.namespace} or watch.namespace == namespace
        )

    @property
    def stuck(self) -> list[str]:
        """Kinds of which nothing was heard for longer than it takes to heal."""
        limit = self._clock() - STUCK_AFTER_S
        return sorted({watch.kind.plural for watch in self._all if watch.heard_at < limit})

    @property
    def refusals(self) -> list[str]:
        """What the operator may not list or watch, in the server's words."""
        return sorted(watch.refusal for watch in self._all if watch.refusal)

    def begin(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        return [group.create_task(watch.run()) for watch in self._all]

    def _listed(self, namespace: str | None) -> None:
        if self.complete(namespace):
            self._store.wake_all()


class Watch:
    """One kind in one namespace (None: in all)."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        store: Store,
        kind: Kind,
        namespace: str | None,
        clock: Callable[[], float],
        on_listed: Callable[[str | None], None],
    ) -> None:
        self.kind, self.namespace, self.listed = kind, namespace, False
        self.refusal = ""
        self.heard_at = math.inf  # until it runs
        self._gateway, self._store, self._clock = gateway, store, clock
        self._on_listed = on_listed
        self._version = ""  # of the last that was told; empty while a list is due
        self._failures = 0

    async def run(self) -> None:
        self.heard_at = self._clock()
        while True:
            try:
                if not self._version:
                    self._version = await self._list()
                await self._follow()
            except ApiGoneError as error:
                logger.info("%s are listed anew: %s", self.kind.plural, error)
                self._version = ""
                await self._pause()
            except ApiForbiddenError as error:
                # An answer: neither is the watch stuck, nor would a new process be let in.
                self._heard(refusal=str(error))
                logger.warning("%s are not watched: %s", self.kind.plural, error)
                await self._pause()
            except ApiError as error:
                logger.warning("%s are not watched: %s", self.kind.plural, error)
                await self._pause(least_s=error.retry_after_s)
            except LeadershipLostError as error:  # who holds the Lease ends the work
                logger.warning("%s are not watched: %s", self.kind.plural, error)
                await self._pause()

    async def _list(self) -> str:
        """Everything as it is now; returns the version from which to watch."""
        uids, token = set[str](), ""
        while True:
            page = await self._gateway.page(self.kind, namespace=self.namespace, token=token)
            self._heard()
            for body in page["items"]:
                uids.add(body["metadata"]["uid"])
                self._put(body)
            token = page["metadata"].get("continue", "")
            if not token:
                break
        self._store.keep(self.kind, uids, namespace=self.namespace)
        if not self.listed:
            self.listed = True
            self._on_listed(self.namespace)
        version: str = page["metadata"]["resourceVersion"]
        return version

    async def _follow(self) -> None:
        """Until the server ends the watch."""
        began_at = self._clock()
        watch = self._gateway.watch(self.kind, namespace=self.namespace, since=self._version)
        async with aclosing(watch) as events:
            async for event in events:
                self._take(event)
                self._heard()
                self._failures = 0
        self._heard()
        if self.heard_at - began_at < BRIEF_S:
            await self._pause()

    def _heard(self, *, refusal: str = "") -> None:
        self.heard_at, self.refusal = self._clock(), refusal

    def _take(self, event: Json) -> None:
        told, body = event["type"], event["object"]
        if told == "DELETED":
            self._store.drop(self.kind, body["metadata"]["uid"])
        elif told != "BOOKMARK":
            self._put(body)
        self._version = body["metadata"]["resourceVersion"]

    def _put(self, body: Json) -> None:
        try:
            self._store.put(self.kind, body)
        except (LookupError, TypeError, ValueError, AttributeError):
            # One object that is like none we know must not end the service of all others.
            logger.exception("%s of %s is left out", self.kind.plural, body["metadata"])
            self._store.drop(self.kind, body["metadata"]["uid"])

    async def _pause(self, *, least_s: float = 0.0) -> None:
        jitter = random.random()  # noqa: S311 - spreads retries
        pause_s = backoff_s(
            self._failures, base_s=RETRY_BASE_S, limit_s=RETRY_LIMIT_S, jitter=jitter
        )
        self._failures += 1
        await asyncio.sleep(max(pause_s, least_s))
