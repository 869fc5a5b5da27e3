"""Whether what preflight found lets a decode agent be ready: pure.

Two rules. `required` asks for a whole sample, RequireRDMA for reads over RDMA. Both hold back an
agent that has never been ready until every peer was found good. After that a new or broken peer
does not take a serving agent away, as long as one peer is good; but reads that are seen to go over
something else than RDMA do, for RequireRDMA promises that none does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from disagg_transfer.canary import PreflightSettings
from disagg_transfer.contract import (
    MIXED_TRANSPORT,
    NotReady,
    PreflightMode,
    PreflightReport,
    PreflightState,
    Transport,
    TransportPolicy,
)

Verdict = tuple[NotReady, str]


def is_good(row: PreflightReport, settings: PreflightSettings) -> bool:
    """Whether nothing that the settings ask for is missing of this peer."""
    required = settings.mode is PreflightMode.REQUIRED
    rdma = settings.policy is TransportPolicy.REQUIRE_RDMA
    passed = row.state is PreflightState.PASSED
    return (passed or not (required or rdma)) and (not rdma or row.transport is Transport.RDMA)


def verdict(
    rows: Sequence[PreflightReport], settings: PreflightSettings, *, cleared: bool
) -> Verdict | None:
    """Why not ready, or None. `cleared`: every peer was found good once already."""
    bad = [row for row in rows if not is_good(row, settings)]
    refused = [row for row in bad if row.state is PreflightState.PASSED]
    if refused:
        return NotReady.TRANSPORT_REFUSED, _over(refused[0])
    if not bad or (cleared and len(bad) < len(rows)):
        return None
    failed = [row for row in bad if row.state is PreflightState.FAILED]
    if failed:
        row = failed[0]
        return NotReady.PREFLIGHT_FAILED, f"prefill pod {row.pod}: {row.cause}: {row.detail}"
    return NotReady.PREFLIGHT_PENDING, f"prefill pod {bad[0].pod}: {bad[0].detail}"


_SEVERITY: Final = (PreflightState.FAILED, PreflightState.PENDING, PreflightState.PASSED)
_SLOWEST: Final = tuple(reversed(Transport))


def merged(rows: Sequence[PreflightReport]) -> PreflightReport:
    """One row for all rank pairs of two pods: each thing as bad as it is for any of them."""
    worst = min(rows, key=lambda row: _SEVERITY.index(row.state))
    slowest = min(rows, key=lambda row: _SLOWEST.index(row.transport))
    passed = [row.passed_at for row in rows]
    return replace(
        worst,
        gbps=_least(row.gbps for row in rows),
        latency_ms=max(
            (row.latency_ms for row in rows if row.latency_ms is not None), default=None
        ),
        transport=slowest.transport,
        transport_reason=slowest.transport_reason,
        passed_at=None if None in passed else _least(passed),
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def transport_of(rows: Sequence[PreflightReport], policy: TransportPolicy) -> tuple[str, str]:
    """What the agent as a whole reads over, and why that is not RDMA unless nobody asked."""
    found = {row.transport for row in rows} - {Transport.UNKNOWN}
    told = [row for row in rows if row.transport_reason]
    quiet = policy is TransportPolicy.ANY or not told
    reason = "" if quiet else f"prefill pod {told[0].pod}: {told[0].transport_reason}"
    if len(found) > 1:
        return MIXED_TRANSPORT, reason
    return next(iter(found), Transport.UNKNOWN), reason


def _over(row: PreflightReport) -> str:
    return f"reads from prefill pod {row.pod} go over {row.transport}: {row.transport_reason}"
