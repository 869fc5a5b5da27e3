"""A second opinion on the watches: now and then everything is listed by name, and compared.

A watch that begins anew with a list (410 Gone, after a server was away) tells nothing of what was
deleted meanwhile; kopf would keep such objects in its indices for ever. And a watch that brings
nothing any more leaves the operator blind. So each kind is listed every `PERIOD_S`, and soon after
its watch has begun anew, which shows as events without a type. Lists hold names and versions only.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from disagg_operator.errors import ApiError
from disagg_operator.kinds import Kind

PERIOD_S: Final = 100.0
# A list of thousands comes as thousands of events; the first of them is no time to compare.
SETTLE_S: Final = 2.0
# Kopf breaks a silent watch off after 40 s, and tries again.
STUCK_AFTER_S: Final = 150.0

Owner = tuple[str, str]
Versions = Mapping[str, str]  # resourceVersion by uid
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """One kind, as its watch has told of it."""

    versions: dict[str, str] = field(default_factory=dict)
    owners: dict[str, Owner | None] = field(default_factory=dict)
    due: float = 0.0
    # Objects whose watched version differs from the listed one, since when.
    behind: dict[str, tuple[str, float]] = field(default_factory=dict)


class Census:
    def __init__(
        self,
        kinds: Iterable[Kind],
        *,
        listed: Callable[[Kind], Awaitable[Versions]],
        wake: Callable[[Owner], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listed, self._wake, self._clock = listed, wake, clock
        self._watched = {kind: _Watched(due=clock() + PERIOD_S) for kind in kinds}
        self._changed = asyncio.Event()
        self.gone: set[str] = set()  # uids that the indices may still have

    def event(self, kind: Kind, event_type: str | None, body: Any, owner: Owner | None) -> None:
        watched, uid = self._watched[kind], body["metadata"]["uid"]
        if event_type == "DELETED":
            watched.versions.pop(uid, None)
            watched.owners.pop(uid, None)
            self.gone.discard(uid)
            return
        watched.versions[uid] = body["metadata"].get("resourceVersion", "")
        watched.owners[uid] = owner
        if event_type is None:
            watched.due = min(watched.due, self._clock() + SETTLE_S)
            self._changed.set()

    @property
    def stuck(self) -> list[str]:
        """Kinds whose watch has not brought what is listed for longer than it takes to heal."""
        limit = self._clock() - STUCK_AFTER_S
        return sorted(
            kind.plural
            for kind, watched in self._watched.items()
            if any(since < limit for _, since in watched.behind.values())
        )

    async def run(self) -> None:
        while True:
            for kind, watched in self._watched.items():
                if watched.due <= self._clock():
                    watched.due = self._clock() + PERIOD_S
                    await self._count(kind, watched)
            soonest = min(watched.due for watched in self._watched.values())
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, soonest - self._clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _count(self, kind: Kind, watched: _Watched) -> None:
        before = dict(watched.versions)
        try:
            listed = await self._listed(kind)
        except ApiError as error:
            logger.warning("%s are not compared with the watch: %s", kind.plural, error)
            return
        self._bury(kind, watched, before.keys() - listed.keys())
        now = self._clock()
        behind = {}
        for uid, version in listed.items():
            seen = watched.versions.get(uid, "")
            if seen == version or seen != before.get(uid, seen):
                continue  # it was brought, or something newer, while we looked
            known = watched.behind.get(uid)
            behind[uid] = known if known is not None and known[0] == seen else (seen, now)
        watched.behind = behind

    def _bury(self, kind: Kind, watched: _Watched, missed: Iterable[str]) -> None:
        for uid in missed:
            owner = watched.owners.pop(uid, None)
            if watched.versions.pop(uid, None) is not None:
                logger.info("%s %s is gone, and the watch has not told", kind.plural, uid)
                self.gone.add(uid)
                if owner is not None:
                    self._wake(owner)
