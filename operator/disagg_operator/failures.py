"""Failed transfers as both sides tell them, and which pairs of pods still fail: pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from disagg_operator.api.status import TransferFailure
from disagg_operator.observe import AgentView, Observed
from disagg_operator.timestamps import seconds, timestamp
from disagg_transfer.contract import FailureReport, PairReport, Role

# Both sides of one transfer note its end within this time of each other.
SAME_INCIDENT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pair:
    """Two pods; a name is empty when its agent never said it."""

    prefill: str
    decode: str

    def may_be(self, other: "Pair") -> bool:
        """Whether all names that both have are the same."""
        names = ((self.prefill, other.prefill), (self.decode, other.decode))
        return all(one == two or not one or not two for one, two in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The newest failure of one state type between two pods, as one side tells it."""

    state_type: str
    pair: Pair
    failure: FailureReport
    teller: Role

    @property
    def incident(self) -> tuple[str, Pair, int]:
        return (self.state_type, self.pair, self.failure.room)


def sightings(views: Mapping[str, AgentView], observed: Observed) -> tuple[Sighting, ...]:
    """Each incident once, newest first; decode's word goes, since it knows what it waited for."""
    found: dict[tuple[str, Pair, int], Sighting] = {}
    for sighting in _all_sightings(views, observed):
        known = found.get(sighting.incident)
        if known is None or sighting.teller is Role.DECODE:
            found[sighting.incident] = sighting
    return tuple(sorted(found.values(), key=lambda item: (-item.failure.time, item.incident)))


def _all_sightings(views: Mapping[str, AgentView], observed: Observed) -> Iterator[Sighting]:
    for role, state_type, pair in _pairs(views):
        if pair.last_failure is not None:
            yield Sighting(
                state_type=state_type,
                pair=_pair(pair, observed),
                failure=pair.last_failure,
                teller=role,
            )


def _pairs(views: Mapping[str, AgentView]) -> Iterator[tuple[Role, str, PairReport]]:
    for report in (view.report for view in views.values() if view.report is not None):
        for row in report.state_types:
            for pair in row.pairs:
                yield report.role, row.type, pair


def _pair(told: PairReport, observed: Observed) -> Pair:
    return Pair(
        prefill=_pod_at(told.prefill_pod, observed), decode=_pod_at(told.decode_pod, observed)
    )


def _pod_at(told: str, observed: Observed) -> str:
    """A peer that was never met is told by its host and port, by which we know the pod."""
    host, _, port = told.rpartition(":")
    if not port.isdigit():
        return told
    label = host.partition(".")[0]
    if label in observed.pods:
        return label
    return next((pod.name for pod in observed.pods.values() if pod.ip == host), told)


def unhealed(
    found: Iterable[Sighting], views: Mapping[str, AgentView], observed: Observed
) -> Iterator[Sighting]:
    """Failures that nothing has happened since: neither side tells of a newer success of that type
    between those pods, and both still run the very processes that failed.
    """
    successes = _successes(views)
    for sighting in found:
        success = _newest(successes.get(sighting.state_type, {}), sighting.pair)
        if success < sighting.failure.time and _same_processes(sighting, observed):
            yield sighting


def _successes(views: Mapping[str, AgentView]) -> Mapping[str, Mapping[Pair, float]]:
    found: dict[str, dict[Pair, float]] = {}
    for _, state_type, told in _pairs(views):
        if told.last_success is not None:
            times = found.setdefault(state_type, {})
            pair = Pair(prefill=told.prefill_pod, decode=told.decode_pod)
            times[pair] = max(told.last_success, times.get(pair, 0.0))
    return found


def _newest(times: Mapping[Pair, float], pair: Pair) -> float:
    """Of that pair; of all that it may be, when one side's name is not known."""
    if pair.prefill and pair.decode:
        return times.get(pair, 0.0)
    return max((time for other, time in times.items() if other.may_be(pair)), default=0.0)


def _same_processes(sighting: Sighting, observed: Observed) -> bool:
    for name in (sighting.pair.prefill, sighting.pair.decode):
        if not name:
            continue  # the peer never said its name: nothing can be told of it
        pod = observed.pods.get(name)
        if pod is None or pod.deleting:
            return False
        for container in (pod.agent, pod.engine):
            # Seconds are all that the kubelet tells, rounded down.
            if container is not None and (container.started_at or 0.0) > sighting.failure.time:
                return False
    return True


def told(sighting: Sighting) -> str:
    """The failure in one line: type, pods, cause, stage, details."""
    failure = sighting.failure
    details = f": {failure.detail}" if failure.detail else ""
    return (
        f"{sighting.state_type} from pod {sighting.pair.prefill or 'unknown'}"
        f" to pod {sighting.pair.decode or 'unknown'}:"
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
        prefill_pod=sighting.pair.prefill,
        decode_pod=sighting.pair.decode,
        message=told(sighting)[:1024],
    )
