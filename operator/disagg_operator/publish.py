"""Writes the status and the Events of one resource: the only writer of both."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from disagg_operator.api.status import DisaggDeploymentStatus
from disagg_operator.changes import Change, change_of, counter_floor_s
from disagg_operator.errors import ApiConflictError, ApiError, ApiNotFoundError
from disagg_operator.events import EventGate, News, event_object, status_news
from disagg_operator.kinds import Json, Kind, ObjectReference
from disagg_operator.report import parse_status, status_object

# For so long a status that we wrote counts as the present one although the watch shows an older.
TRUST_S = 5.0
logger = logging.getLogger(__name__)


class StatusWriter(Protocol):
    """The part of the gateway that a status needs."""

    async def apply_status(self, body: Json) -> Json: ...
    async def create(self, kind: Kind, body: Json) -> Json: ...


@dataclass(slots=True, kw_only=True)
class Publisher:
    """`instance` names this process in Events; `resources` counts those that share the floor."""

    writer: StatusWriter
    resource: ObjectReference
    instance: str
    clock: Callable[[], float]
    resources: Callable[[], int]
    _gate: EventGate = field(default_factory=EventGate)
    _written: DisaggDeploymentStatus | None = None
    _written_at: float = 0.0

    def previous(self, body: Mapping[str, Any]) -> DisaggDeploymentStatus:
        """The status as we know it to be: the watch may still show the one before our write."""
        found = parse_status(body)
        if self._written is not None and self.clock() < self._written_at + TRUST_S:
            return self._written
        return found

    async def publish(
        self, status: DisaggDeploymentStatus, *, previous: DisaggDeploymentStatus
    ) -> float | None:
        """Write what changed; seconds to wait when it may not be written yet."""
        change = change_of(previous, status)
        if change is Change.NONE:
            return None
        due = self._written_at + counter_floor_s(self.resources()) - self.clock()
        if change is Change.COUNTERS and due > 0:
            return due
        if await self._write(status):
            await self.tell(status_news(previous, status))
        return None

    async def tell(self, items: Iterable[News]) -> None:
        """Events are a courtesy: one that cannot be posted is logged and forgotten."""
        for item in items:
            now = self.clock()
            if not self._gate.admits(item, now=now):
                continue
            body = event_object(
                item, resource=self.resource, instance=self.instance, unique=uuid4(), now=now
            )
            try:
                await self.writer.create(Kind.EVENT, body)
            except ApiError as error:
                logger.warning("event %s not posted: %s", item.reason, error)

    async def _write(self, status: DisaggDeploymentStatus) -> bool:
        try:
            await self.writer.apply_status(status_object(status, resource=self.resource))
        except (ApiNotFoundError, ApiConflictError) as error:
            # Deleted, or deleted and made anew: this status is nobody's any more.
            logger.debug("status of %s not written: %s", self.resource.name, error)
            return False
        self._written, self._written_at = status, self.clock()
        return True
