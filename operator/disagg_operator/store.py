"""What the watches have told: resources and their children as small records, by owner.

A record is taken and the object dropped: ten thousand pods must fit in memory. Who puts, drops and
keeps is `watches`, one stream for each kind and namespace, so that nothing here is older than what
replaces it.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from disagg_operator.kinds import Kind, ObjectReference, Owner
from disagg_operator.observe import (
    ResourceRecord,
    guard_record,
    owner_key,
    pod_record,
    resource_record,
    router_record,
    scaler_record,
    service_record,
)

Body = Mapping[str, Any]


_RECORD: Final[Mapping[Kind, Callable[[Body], Any]]] = {
    Kind.POD: pod_record,
    Kind.SERVICE: service_record,
    Kind.DEPLOYMENT: router_record,
    Kind.DISRUPTION_BUDGET: partial(guard_record, kind=Kind.DISRUPTION_BUDGET),
    Kind.NETWORK_POLICY: partial(guard_record, kind=Kind.NETWORK_POLICY),
    Kind.SCALER: scaler_record,
    Kind.RESOURCE: resource_record,
}
WATCHED: Final = tuple(_RECORD)


class Store:
    """Wakes the owner of whatever came, changed or went; an object that says what it said before
    wakes nobody.
    """

    def __init__(self, *, wake: Callable[[Owner], None]) -> None:
        self._wake = wake
        self._owners: dict[Kind, dict[str, Owner]] = {kind: {} for kind in WATCHED}
        self._records: dict[Kind, dict[Owner, dict[str, Any]]] = {kind: {} for kind in WATCHED}

    def put(self, kind: Kind, body: Body) -> None:
        """An object as it is now; one without our label is nobody's."""
        uid, owner = body["metadata"]["uid"], _owner(kind, body)
        if self._owners[kind].get(uid, owner) != owner:  # somebody wrote another label
            self.drop(kind, uid)
        if owner is None:
            return
        record = _RECORD[kind](body)
        records = self._records[kind].setdefault(owner, {})
        if records.get(uid) == record:
            return
        self._owners[kind][uid] = owner
        records[uid] = record
        self._wake(owner)

    def drop(self, kind: Kind, uid: str) -> None:
        """An object that is gone, or that we never had."""
        owner = self._owners[kind].pop(uid, None)
        if owner is None:
            return
        records = self._records[kind][owner]
        del records[uid]
        if not records:
            del self._records[kind][owner]
        self._wake(owner)

    def keep(self, kind: Kind, uids: Iterable[str], *, namespace: str | None) -> None:
        """Drop what a list of one namespace, or of all, has not told of."""
        listed = frozenset(uids)
        for uid, owner in list(self._owners[kind].items()):
            if uid not in listed and namespace in {None, owner[0]}:
                self.drop(kind, uid)

    def of(self, owner: Owner, *kinds: Kind) -> tuple[Any, ...]:
        """Records of some kinds of an owner's children."""
        return tuple(
            record for kind in kinds for record in self._records[kind].get(owner, {}).values()
        )

    def resource(self, resource: ObjectReference) -> ResourceRecord | None:
        """The resource itself, while it is there."""
        found = self._records[Kind.RESOURCE].get(resource.owner, {})
        record: ResourceRecord | None = found.get(resource.uid)
        return record

    def resources(self) -> list[ResourceRecord]:
        return [one for found in self._records[Kind.RESOURCE].values() for one in found.values()]

    def wake_all(self) -> None:
        for owner in self._records[Kind.RESOURCE]:
            self._wake(owner)


def _owner(kind: Kind, body: Body) -> Owner | None:
    metadata = body["metadata"]
    if kind is Kind.RESOURCE:
        return (metadata["namespace"], metadata["name"])
    return owner_key(body)
