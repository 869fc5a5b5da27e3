"""The condition PreflightPassed: what decode agents found when they sampled prefill pods. Pure.

It tells, and holds nothing back: with `preflight.mode: Required` that is done by the agents
themselves and by the pods' gates (`gates`). The message has no figure that changes from sample to
sample, or an idle resource would be written for ever.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from disagg_operator import names
from disagg_operator.api.status import FailedPair, PreflightStatus
from disagg_operator.finding import Finding
from disagg_operator.observe import AgentView, Observed
from disagg_transfer.contract import PreflightReport, PreflightState, Report

FAILED_LIMIT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a decode agent says of one prefill pod."""

    decode: str
    row: PreflightReport

    @property
    def failure(self) -> str:
        row = self.row
        return f"sample from pod {row.pod} to pod {self.decode}: {row.cause}: {row.detail}"


def preflight_finding(views: Mapping[str, AgentView], observed: Observed) -> Finding:
    pairs = tuple(sampled_pairs(views, observed))
    failed = [pair for pair in pairs if pair.row.state is PreflightState.FAILED]
    if failed:
        message = failed[0].failure + _further(len(failed) - 1)
        return Finding(
            truth="False",
            reason=names.REASON_PREFLIGHT_FAILED,
            message=message,
        )
    pending = [pair for pair in pairs if pair.row.state is PreflightState.PENDING]
    if pending or not pairs:
        return Finding(
            truth="Unknown",
            reason=names.REASON_PREFLIGHT_PENDING,
            message=_awaited(pending),
        )
    return Finding(
        truth="True",
        reason=names.REASON_PREFLIGHT_PASSED,
        message=f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of pods passed"
        + _transport(views),
    )


def preflight_status(
    views: Mapping[str, AgentView], observed: Observed, *, previous: PreflightStatus | None
) -> PreflightStatus | None:
    """None before a decode agent has a pair to sample."""
    pairs = tuple(sampled_pairs(views, observed))
    if not pairs:
        return None
    passed = [pair.row for pair in pairs if pair.row.state is PreflightState.PASSED]
    failed = (pair for pair in pairs if pair.row.state is PreflightState.FAILED)
    speeds = [row.gbps for row in passed if row.gbps is not None]
    return PreflightStatus(
        pairs=f"{len(passed)}/{len(pairs)}",
        slowest_gbps=_steady(min(speeds, default=None), previous),
        failed=tuple(
            FailedPair(prefill_pod=pair.row.pod, decode_pod=pair.decode, cause=str(pair.row.cause))
            for pair in islice(failed, FAILED_LIMIT)
        ),
    )


def _steady(gbps: float | None, previous: PreflightStatus | None) -> float | None:
    """What was told, unless it is off by a factor of two: every canary measures a little else."""
    known = previous.slowest_gbps if previous is not None else None
    if gbps is None:
        return None
    if known and known / 2 < gbps < known * 2:
        return known
    return float(f"{gbps:.2g}")


def sampled_pairs(views: Mapping[str, AgentView], observed: Observed) -> Iterator[Sampled]:
    for pod, report in _reports(views):
        if pod in observed.pods:
            for row in report.preflight:
                if row.pod in observed.pods:
                    yield Sampled(decode=pod, row=row)


def _reports(views: Mapping[str, AgentView]) -> Iterable[tuple[str, Report]]:
    return ((pod, view.report) for pod, view in sorted(views.items()) if view.report is not None)


def _further(count: int) -> str:
    if not count:
        return ""
    return (
        f"; {count} further pair{'s' if count > 1 else ''} of pods fail{'' if count > 1 else 's'}"
    )


def _awaited(pending: list[Sampled]) -> str:
    if not pending:
        return "no decode agent has sampled a prefill pod yet"
    first = pending[0]
    return f"no sample from pod {first.row.pod} to pod {first.decode} has ended yet"


def _transport(views: Mapping[str, AgentView]) -> str:
    """What reads go over where that is not what somebody wants, and why."""
    told = [report for _, report in _reports(views) if report.transport_reason]
    return f", over {told[0].transport}: {told[0].transport_reason}" if told else ""
