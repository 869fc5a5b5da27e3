"""What our own writes must lead to, until the watch shows it.

A pass may run before the watch has brought back what the pass before wrote. For that moment the
answers of the API server stand in for the missing records, so that nothing is written twice. An
expectation that the watch does not meet within `LIMIT_S` is dropped: the cluster is right.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from disagg_operator.kinds import Json, Kind
from disagg_operator.observe import (
    GuardRecord,
    Observed,
    PodRecord,
    RouterRecord,
    ScalerRecord,
    ServiceRecord,
    guard_record,
    pod_record,
    router_record,
    scaler_record,
    service_record,
)

LIMIT_S = 5.0
_GUARDS = frozenset({Kind.DISRUPTION_BUDGET, Kind.NETWORK_POLICY})
_Record = PodRecord | ServiceRecord | RouterRecord | GuardRecord | ScalerRecord
_R = TypeVar("_R", PodRecord, ServiceRecord, RouterRecord, GuardRecord, ScalerRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    record: _Record | None  # None: the object with `uid` goes away
    uid: str
    until: float


@dataclass(slots=True)
class Expectations:
    _by_name: dict[tuple[Kind, str], _Expected] = field(default_factory=dict)

    def written(self, kind: Kind, answer: Json, *, now: float) -> None:
        record = _read(kind, answer)
        self._by_name[(kind, record.name)] = _Expected(
            record=record, uid=record.uid, until=now + LIMIT_S
        )

    def deleted(self, kind: Kind, name: str, *, uid: str, now: float) -> None:
        self._by_name[(kind, name)] = _Expected(record=None, uid=uid, until=now + LIMIT_S)

    def overlay(self, observed: Observed, *, now: float) -> Observed:
        self._drop_met(observed, now=now)
        if not self._by_name:
            return observed
        return Observed(
            pods=self._merged({Kind.POD}, observed.pods),
            services=self._merged({Kind.SERVICE}, observed.services),
            routers=self._merged({Kind.DEPLOYMENT}, observed.routers),
            guards=self._merged(_GUARDS, observed.guards),
            scalers=self._merged({Kind.SCALER}, observed.scalers),
        )

    def next_deadline(self) -> float | None:
        return min((item.until for item in self._by_name.values()), default=None)

    def _drop_met(self, observed: Observed, *, now: float) -> None:
        known: Mapping[Kind, Mapping[str, _Record]] = {
            Kind.POD: observed.pods,
            Kind.SERVICE: observed.services,
            Kind.DEPLOYMENT: observed.routers,
            Kind.SCALER: observed.scalers,
            **dict.fromkeys(_GUARDS, observed.guards),
        }
        self._by_name = {
            (kind, name): item
            for (kind, name), item in self._by_name.items()
            if now < item.until and not _met(item, known[kind].get(name))
        }

    def _merged(self, kinds: Collection[Kind], known: Mapping[str, _R]) -> Mapping[str, _R]:
        merged = dict(known)
        for name, item in self._of(kinds):
            if item.record is not None:
                merged[name] = item.record  # type: ignore[assignment]
            elif name in merged:
                _take_away(merged, name, until=item.until)
        return merged

    def _of(self, kinds: Collection[Kind]) -> Iterator[tuple[str, _Expected]]:
        return ((name, item) for (known, name), item in self._by_name.items() if known in kinds)


def _read(kind: Kind, answer: Json) -> _Record:
    if kind is Kind.POD:
        return pod_record(answer)
    if kind in _GUARDS:
        return guard_record(answer, kind=kind)
    if kind is Kind.SCALER:
        return scaler_record(answer)
    return service_record(answer) if kind is Kind.SERVICE else router_record(answer)


def _take_away(merged: dict[str, _R], name: str, *, until: float) -> None:
    """A deleted pod keeps its name until it has stopped; other objects are gone at once."""
    record = merged.pop(name)
    if isinstance(record, PodRecord):
        merged[name] = replace(record, deleted_at=record.deleted_at or until)


def _met(item: _Expected, seen: _Record | None) -> bool:
    if item.record is None:
        return seen is None or seen.uid != item.uid or getattr(seen, "deleting", False)
    if seen is None:
        return False
    if isinstance(item.record, PodRecord):
        return seen.uid != item.uid or getattr(seen, "gate", None) == item.record.gate
    if isinstance(item.record, ScalerRecord):
        return _as_told(seen, item.record)
    return seen.uid != item.uid or getattr(seen, "intent", "") == item.record.intent


def _as_told(seen: _Record, told: ScalerRecord) -> bool:
    """The watch has brought back what we wrote, whatever others wrote into its spec since."""
    return isinstance(seen, ScalerRecord) and (
        seen.uid,
        seen.told_replicas,
        seen.told_selector,
    ) == (told.uid, told.told_replicas, told.told_selector)
