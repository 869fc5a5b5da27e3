"""What one resource's loop looks at: the resource and its children, as the store has them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.kinds import Kind, ObjectReference
from disagg_operator.observe import (
    GuardRecord,
    PodRecord,
    RouterRecord,
    ScalerRecord,
    ServiceRecord,
)
from disagg_operator.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    body: Mapping[str, Any]
    pods: tuple[PodRecord, ...]
    services: tuple[ServiceRecord, ...]
    routers: tuple[RouterRecord, ...]
    guards: tuple[GuardRecord, ...]
    scalers: tuple[ScalerRecord, ...]


@dataclass(slots=True, kw_only=True)
class Sight:
    """Our watch may bring the resource after kopf's has. And it tells of its end when kopf's does
    not: of one whose finalizer was taken off by hand while nothing could be watched (410 Gone).
    """

    store: Store
    resource: ObjectReference
    complete: Callable[[], bool]
    _seen: bool = False

    def snapshot(self) -> Snapshot | None:
        """None while the resource, or the first list of any kind, has not been brought."""
        record = self.store.resource(self.resource)
        if record is None or not self.complete():
            return None
        owner = self.resource.owner
        return Snapshot(
            body=record.body.value,
            pods=self.store.of(owner, Kind.POD),
            services=self.store.of(owner, Kind.SERVICE),
            routers=self.store.of(owner, Kind.DEPLOYMENT),
            guards=self.store.of(owner, Kind.DISRUPTION_BUDGET, Kind.NETWORK_POLICY),
            scalers=self.store.of(owner, Kind.SCALER),
        )

    def lost(self) -> bool:
        """Whether the resource was brought once, and is gone now or on its way."""
        record = self.store.resource(self.resource)
        if record is None:
            return self._seen
        self._seen = True
        return record.deleting
