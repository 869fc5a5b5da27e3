"""`status.transfer` and the condition TransferHealthy, from the agents' reports: pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from disagg_operator import names
from disagg_operator.api.status import Condition, StateTypeStatus, TransferStatus
from disagg_operator.failures import Sighting, newest_failure, sightings, told, unhealed
from disagg_operator.finding import Finding, Weight
from disagg_operator.observe import AgentView, Observed
from disagg_operator.served import LEAST, Ledger
from disagg_operator.tally import Tally
from disagg_operator.timestamps import seconds, timestamp
from disagg_transfer.contract import STATE_TYPE_ALIASES, Cause, MismatchReport, Role

# An agent that runs and does not answer for this long is told; a restart is over by then.
UNREACHABLE_AFTER_S = 10.0
UNKNOWN_TRANSPORT = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """All that is known of transfers at one moment. `views` by pod name."""

    observed: Observed
    views: Mapping[str, AgentView]
    tally: Tally
    ledger: Ledger
    previous: Mapping[str, StateTypeStatus]
    told: Condition | None  # TransferHealthy as the status has it
    now: float


def transfer_status(
    traffic: Traffic, *, state_types: Iterable[str], expected: int
) -> TransferStatus:
    found = sightings(traffic.views, traffic.observed)
    answering = [v.report for v in traffic.views.values() if v.report and not v.error]
    return TransferStatus(
        reporting_agents=len(answering),
        expected_agents=expected,
        transport=_transport({report.transport for report in answering}),
        state_types=tuple(
            _row(traffic, state_type, found) for state_type in _row_names(traffic, state_types)
        ),
        active_faults=tuple(sorted({fault for report in answering for fault in report.faults})),
    )


def _transport(transports: set[str]) -> str:
    known = transports - {UNKNOWN_TRANSPORT}
    if len(known) > 1:
        return "mixed"
    return known.pop() if known else UNKNOWN_TRANSPORT


def _row_names(traffic: Traffic, state_types: Iterable[str]) -> list[str]:
    asked = [STATE_TYPE_ALIASES.get(name, name) for name in state_types]
    reported = [
        row.type
        for view in traffic.views.values()
        if view.report is not None
        for row in view.report.state_types
    ]
    return sorted({*asked, *reported, *traffic.previous})


def _row(traffic: Traffic, state_type: str, found: Iterable[Sighting]) -> StateTypeStatus:
    previous = traffic.previous.get(state_type)
    total = traffic.tally.total(state_type)
    success = max(_successes(traffic, state_type, previous), default=None)
    return StateTypeStatus(
        type=state_type,
        transfers=total.transfers,
        bytes=total.bytes,
        timeouts=total.timeouts,
        failures=total.failures,
        last_success_time=None if success is None else timestamp(success),
        last_failure=newest_failure(
            found,
            state_type=state_type,
            previous=previous.last_failure if previous is not None else None,
        ),
    )


def _successes(
    traffic: Traffic, state_type: str, previous: StateTypeStatus | None
) -> Iterator[float]:
    if previous is not None and previous.last_success_time is not None:
        yield seconds(previous.last_success_time)
    for view in traffic.views.values():
        if view.report is not None and view.report.role is Role.DECODE:
            for row in view.report.state_types:
                if row.type == state_type and row.last_success is not None:
                    yield row.last_success


def transfer_finding(traffic: Traffic) -> Finding:
    return (
        _layouts(traffic)
        or _failing(traffic)
        or _unreachable(traffic)
        or _unasked(traffic)
        or _without_failure(traffic)
    )


def _layouts(traffic: Traffic) -> Finding | None:
    mismatches = [
        mismatch
        for pod, view in sorted(traffic.views.items())
        if view.report is not None and pod in traffic.observed.pods
        for mismatch in view.report.layout_mismatch
    ]
    if not mismatches:
        return None
    message = _mismatch(min(mismatches, key=_mismatch))
    return _unhealthy(names.REASON_LAYOUT_MISMATCH, message, Weight.LAYOUT)


def _mismatch(mismatch: MismatchReport) -> str:
    return (
        f"layouts differ in {mismatch.field}: prefill pod {mismatch.prefill_pod} has"
        f" {mismatch.prefill}, decode pod {mismatch.decode_pod} has {mismatch.decode};"
        " run the same model and engine settings in both roles"
    )


def _failing(traffic: Traffic) -> Finding | None:
    found = sightings(traffic.views, traffic.observed)
    failing = tuple(unhealed(found, traffic.views, traffic.observed))
    if not failing:
        return None
    current = failing[0]
    reason = {
        Cause.TIMEOUT: names.REASON_STATE_TRANSFER_TIMEOUT,
        Cause.LAYOUT_MISMATCH: names.REASON_LAYOUT_MISMATCH,
    }.get(current.failure.cause, names.REASON_STATE_TRANSFER_FAILED)
    others = {one.pair for one in failing if not one.pair.may_be(current.pair)}
    return _unhealthy(reason, told(current) + _further(len(others)), Weight.CONSEQUENCE)


def _further(pairs: int) -> str:
    if not pairs:
        return ""
    return (
        f"; {pairs} further pair{'s' if pairs > 1 else ''} of pods fail{'' if pairs > 1 else 's'}"
    )


def _unreachable(traffic: Traffic) -> Finding | None:
    silent = [pod for pod, _ in _silent(traffic) if _overdue_s(traffic, pod) <= 0]
    if not silent:
        return None
    pod = min(silent)
    if traffic.views[pod].refused:
        message = (
            f"agent of pod {pod} does not take the operator's token: {traffic.views[pod].error};"
            " its key is not one that this operator made: delete the pod if its key Secret is"
            " new, or else change the spec, so that a new revision begins"
        )
        return _unhealthy(names.REASON_REPORT_REFUSED, message, Weight.AGENT)
    message = (
        f"agent of pod {pod} runs but does not answer the operator:"
        f" {traffic.views[pod].error}; check network policies for its port"
    )
    return _unhealthy(names.REASON_AGENT_UNREACHABLE, message, Weight.AGENT)


def _unasked(traffic: Traffic) -> Finding | None:
    """Requests are answered and no state moves: the engines do without their agents."""
    idle = traffic.ledger.idle.keys() & traffic.observed.pods.keys()
    told = traffic.told
    if idle:
        # Without the number, which would be written anew with every look.
        message = (
            f"decode pod {min(idle)} answered {LEAST} or more requests and no state was moved to"
            " it: its engine does not ask its agent for any; look at the engine's transfer backend"
        )
        return _unhealthy(names.REASON_NO_TRANSFER_TRAFFIC, message, Weight.CONSEQUENCE)
    if traffic.ledger.witnessed or told is None:
        return None
    if told.reason != names.REASON_NO_TRANSFER_TRAFFIC:
        return None
    # Found by an operator process before this one, and nothing has moved since.
    return _unhealthy(told.reason, told.message, Weight.CONSEQUENCE)


def _silent(traffic: Traffic) -> Iterator[tuple[str, float]]:
    """Pods whose agent the kubelet calls ready, and that we cannot reach, since when."""
    for pod, view in traffic.views.items():
        record = traffic.observed.pods.get(pod)
        agent = record.agent if record is not None else None
        if view.failing_since is not None and agent is not None and agent.ready:
            yield pod, view.failing_since


def _overdue_s(traffic: Traffic, pod: str) -> float:
    since = traffic.views[pod].failing_since
    return 0.0 if since is None else since + UNREACHABLE_AFTER_S - traffic.now


def next_change_s(traffic: Traffic) -> float | None:
    """Seconds until a silence grows long enough to be told."""
    waits = (_overdue_s(traffic, pod) for pod, _ in _silent(traffic))
    return min((wait for wait in waits if wait > 0), default=None)


def _without_failure(traffic: Traffic) -> Finding:
    moved = any(
        row.last_success is not None
        for view in traffic.views.values()
        if view.report is not None
        for row in view.report.state_types
    )
    if moved:
        return Finding(
            truth="True",
            reason=names.REASON_TRANSFERS_SUCCEEDING,
            message="the newest transfer of every state type arrived whole",
        )
    return Finding(
        truth="Unknown",
        reason=names.REASON_NO_DATA,
        message="no transfer has ended since the agents and engines started",
    )


def _unhealthy(reason: str, message: str, weight: Weight) -> Finding:
    return Finding(truth="False", reason=reason, message=message, weight=weight)
