"""Events for people: what changed from one status to the next. Pure but for the gate's memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from disagg_operator import names
from disagg_operator.api.status import (
    DisaggDeploymentStatus,
    StateTypeStatus,
    TransferFailure,
)
from disagg_operator.intents import Delete, Intent
from disagg_operator.kinds import Json, Kind, ObjectReference
from disagg_operator.timestamps import seconds, timestamp_us
from disagg_transfer.contract import Cause

# The same news about the same pods is told again only after this long.
REPEAT_AFTER_S = 60.0
# The API server's limit on `note`.
NOTE_LIMIT = 1024
_TROUBLE = {
    names.REASON_IMAGE_PULL_FAILED: names.EVENT_IMAGE_PULL_FAILED,
    names.REASON_CONTAINER_CRASHED: names.EVENT_CONTAINER_CRASHED,
    names.REASON_OOM_KILLED: names.EVENT_CONTAINER_CRASHED,
    names.REASON_LAYOUT_MISMATCH: names.EVENT_LAYOUT_MISMATCH,
    names.REASON_NO_TRANSFER_TRAFFIC: names.EVENT_NO_TRANSFER_TRAFFIC,
    names.REASON_INVALID_SPEC: names.EVENT_INVALID_SPEC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """`subject` groups repetitions (a state type, a condition); `identity` tells them apart."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    subject: str = ""
    identity: tuple[str, ...] = ()


def status_news(before: DisaggDeploymentStatus, after: DisaggDeploymentStatus) -> Iterator[News]:
    yield from _revisions(before, after)
    yield from _conditions(before, after)
    yield from _transfers(before, after)


def _revisions(before: DisaggDeploymentStatus, after: DisaggDeploymentStatus) -> Iterator[News]:
    if before.update_revision and before.update_revision != after.update_revision:
        beside = f" beside {after.current_revision}" if after.current_revision else ""
        note = f"starting revision {after.update_revision}{beside}"
        yield _rollout(names.EVENT_REVISION_STARTED, note, after.update_revision)
    # Not only from Progressing: an error while it is built, or parts that are up a moment before
    # Ready, read Degraded. Transfers that succeed again have an event of their own.
    transfers = _truth(before, names.TRANSFER_HEALTHY) != "False"
    if transfers and _truth(after, names.READY) == "True" != _truth(before, names.READY):
        note = f"revision {after.current_revision} serves at {after.url or 'its pods'}"
        yield _rollout(names.EVENT_REVISION_SERVING, note, after.current_revision)


def _rollout(reason: str, note: str, revision: str) -> News:
    return News(type="Normal", reason=reason, action="Rollout", note=note, identity=(revision,))


def intent_news(done: Iterable[Intent]) -> Iterator[News]:
    """Pods that had ended by themselves, not those that a scale-down or a rollout removes."""
    for intent in done:
        if isinstance(intent, Delete) and intent.kind is Kind.POD and intent.ended:
            yield News(
                type="Normal",
                reason=names.EVENT_POD_RECREATED,
                action="Recreate",
                note=f"pod {intent.name} is replaced: {intent.reason}",
                subject=intent.name,
                identity=(intent.uid,),
            )


def _conditions(before: DisaggDeploymentStatus, after: DisaggDeploymentStatus) -> Iterator[News]:
    known = {condition.type: condition for condition in before.conditions}
    for condition in after.conditions:
        earlier = known.get(condition.type)
        summary = condition.type == names.READY
        if condition.status != "False" or summary or condition.reason not in _TROUBLE:
            continue
        if earlier is None or earlier.reason != condition.reason:
            yield News(
                type="Warning",
                reason=_TROUBLE[condition.reason],
                action="Reconcile",
                note=condition.message,
                subject=condition.type,
                identity=(condition.reason, condition.message),
            )


def _transfers(before: DisaggDeploymentStatus, after: DisaggDeploymentStatus) -> Iterator[News]:
    known = {row.type: row for row in _rows(before)}
    for row in _rows(after):
        failure = row.last_failure
        if failure is not None and _is_new(failure, known.get(row.type)):
            yield _failed(row, failure)
    healthy = _truth(after, names.TRANSFER_HEALTHY) == "True"
    if healthy and _truth(before, names.TRANSFER_HEALTHY) == "False":
        note = "transfers succeed again for every state type"
        yield News(
            type="Normal", reason=names.EVENT_TRANSFER_RECOVERED, action="Transfer", note=note
        )


def _is_new(failure: TransferFailure, known: StateTypeStatus | None) -> bool:
    before = known.last_failure if known is not None else None
    return before is None or seconds(failure.time) > seconds(before.time)


def _failed(row: StateTypeStatus, failure: TransferFailure) -> News:
    timeout = failure.cause == Cause.TIMEOUT
    return News(
        type="Warning",
        reason=names.EVENT_TRANSFER_TIMEOUT if timeout else names.EVENT_TRANSFER_FAILED,
        action="Transfer",
        note=failure.message,
        subject=row.type,
        identity=(failure.prefill_pod, failure.decode_pod, failure.stage, failure.cause),
    )


def _rows(status: DisaggDeploymentStatus) -> tuple[StateTypeStatus, ...]:
    return status.transfer.state_types if status.transfer is not None else ()


def _truth(status: DisaggDeploymentStatus, kind: str) -> str:
    return next((item.status for item in status.conditions if item.type == kind), "")


@dataclass(slots=True)
class EventGate:
    """At most one event per reason and subject in `REPEAT_AFTER_S`, unless its identity changed."""

    _told: dict[tuple[str, str], tuple[tuple[str, ...], float]] = field(default_factory=dict)

    def admits(self, item: News, *, now: float) -> bool:
        key = (item.reason, item.subject)
        known = self._told.get(key)
        if known is not None and known[0] == item.identity and now - known[1] < REPEAT_AFTER_S:
            return False
        self._told[key] = (item.identity, now)
        return True


def event_object(
    item: News, *, resource: ObjectReference, instance: str, unique: UUID, now: float
) -> Json:
    return {
        "apiVersion": Kind.EVENT.api_version,
        "kind": "Event",
        "metadata": {
            "name": f"{resource.name}.{unique.hex[:16]}",
            "namespace": resource.namespace,
        },
        "eventTime": timestamp_us(now),
        "type": item.type,
        "reason": item.reason,
        "action": item.action,
        "note": item.note[:NOTE_LIMIT],
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "reportingController": names.REPORTING_CONTROLLER,
        "reportingInstance": instance,
    }
