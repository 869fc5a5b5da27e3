"""Failed transfers as both sides tell them, and which of them still count: pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from disagg_operator.api.status import TransferFailure
from disagg_operator.observe import AgentView, Observed
from disagg_operator.timestamps import seconds, timestamp
from disagg_transfer.contract import FailureReport, Role

# Both sides of one transfer note its end within this time of each other.
SAME_INCIDENT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One failure of one state type, as one side tells it."""

    state_type: str
    failure: FailureReport
    teller: Role

    @property
    def incident(self) -> tuple[str, str, str, int]:
        failure = self.failure
        return (self.state_type, failure.prefill_pod, failure.decode_pod, failure.room)


def sightings(views: Mapping[str, AgentView]) -> tuple[Sighting, ...]:
    """Each incident once, newest first; decode's word goes, since it knows what it waited for."""
    found: dict[tuple[str, str, str, int], Sighting] = {}
    for sighting in _all_sightings(views):
        known = found.get(sighting.incident)
        if known is None or sighting.teller is Role.DECODE:
            found[sighting.incident] = sighting
    return tuple(sorted(found.values(), key=lambda item: (-item.failure.time, item.incident)))


def _all_sightings(views: Mapping[str, AgentView]) -> Iterator[Sighting]:
    for view in views.values():
        if view.report is None:
            continue
        for row in view.report.state_types:
            if row.last_failure is not None:
                yield Sighting(
                    state_type=row.type, failure=row.last_failure, teller=view.report.role
                )


def unhealed(
    found: Iterable[Sighting], views: Mapping[str, AgentView], observed: Observed
) -> Iterator[Sighting]:
    """Failures that nothing has happened since: no newer success of that type on either side, and
    both pods still run the very processes that failed.
    """
    for sighting in found:
        newest = max(_successes(sighting, views), default=0.0)
        if newest < sighting.failure.time and _same_processes(sighting.failure, observed):
            yield sighting


def _successes(sighting: Sighting, views: Mapping[str, AgentView]) -> Iterator[float]:
    for pod in (sighting.failure.prefill_pod, sighting.failure.decode_pod):
        view = views.get(pod)
        if view is None or view.report is None:
            continue
        for row in view.report.state_types:
            if row.type == sighting.state_type and row.last_success is not None:
                yield row.last_success


def _same_processes(failure: FailureReport, observed: Observed) -> bool:
    for name in (failure.prefill_pod, failure.decode_pod):
        if not name:
            continue  # the peer never said its name: nothing can be told of it
        pod = observed.pods.get(name)
        if pod is None or pod.deleting:
            return False
        for container in (pod.agent, pod.engine):
            # Seconds are all that the kubelet tells, rounded down.
            if container is not None and (container.started_at or 0.0) > failure.time:
                return False
    return True


def told(sighting: Sighting) -> str:
    """The failure in one line: type, pods, cause, stage, details."""
    failure = sighting.failure
    details = f": {failure.detail}" if failure.detail else ""
    return (
        f"{sighting.state_type} from pod {failure.prefill_pod or 'unknown'}"
        f" to pod {failure.decode_pod or 'unknown'}:"
        f" {failure.cause} in stage {failure.stage}{details}"
    )


def newest_failure(
    found: Iterable[Sighting], *, state_type: str, previous: TransferFailure | None
) -> TransferFailure | None:
    """The row's failure: what agents tell, or what the status had when no agent remembers it."""
    for sighting in found:  # newest first
        if sighting.state_type == state_type:
            current = _row_failure(sighting)
            return previous if previous and _replaces(previous, current) else current
    return previous


def _replaces(previous: TransferFailure, current: TransferFailure) -> bool:
    """The status knows of a later failure; its teller is gone. The same incident told by the other
    side is not later.
    """
    ahead = seconds(previous.time) - seconds(current.time)
    pods = (previous.prefill_pod, previous.decode_pod)
    same = pods == (current.prefill_pod, current.decode_pod) and ahead <= SAME_INCIDENT_S
    return ahead > 0 and not same


def _row_failure(sighting: Sighting) -> TransferFailure:
    failure = sighting.failure
    return TransferFailure(
        time=timestamp(failure.time),
        stage=failure.stage,
        cause=failure.cause,
        component=failure.component or "",
        prefill_pod=failure.prefill_pod,
        decode_pod=failure.decode_pod,
        message=told(sighting)[:1024],
    )
