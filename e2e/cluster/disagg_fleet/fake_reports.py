"""What agents say, made up: reports of pods that have none, for tests and for the simulated fleet."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from disagg_transfer.contract import (
    REPORT_VERSION,
    ArenaReport,
    Cause,
    EngineReport,
    FailureReport,
    PairReport,
    PreflightReport,
    PreflightState,
    Report,
    Role,
    Stage,
    StateTypeReport,
    Transport,
)

_READY: Final = Report(
    version=REPORT_VERSION,
    cursor=1,
    incarnation="a",
    pod="",
    role=Role.DECODE,
    revision="r",
    time=0.0,
    engine=EngineReport(connected=True, components=()),
    ready=True,
    not_ready_reason=None,
    not_ready_message=None,
    transport="tcp",
    layout_mismatch=(),
    peers=(),
    state_types=(),
    inflight=0,
    arena=ArenaReport(bytes=1, used=0, unsettled=0),
    faults=(),
    transport_reason="",
    preflight=(),
    strangers_refused=0,
)


def report(
    pod: str, *, role: str = "decode", rows: Iterable[StateTypeReport] = (), **fields: Any
) -> Report:
    """Of a ready agent, but for `fields`, that has moved what `rows` say."""
    return replace(_READY, pod=pod, role=Role(role), state_types=tuple(rows), **fields)


def row(
    state_type: str,
    *pairs: PairReport,
    transfers: int = 0,
    timeouts: int = 0,
    failures: int = 0,
) -> StateTypeReport:
    return StateTypeReport(
        type=state_type,
        transfers=transfers,
        bytes=transfers * 10,
        timeouts=timeouts,
        failures=failures,
        pairs=pairs,
    )


def pair(
    prefill: str,
    decode: str,
    *,
    success: float | None = None,
    failure: FailureReport | None = None,
) -> PairReport:
    return PairReport(
        prefill_pod=prefill, decode_pod=decode, last_success=success, last_failure=failure
    )


def failure(
    *,
    time: float,
    stage: str = "notify",
    cause: str = "Timeout",
    component: str | None = None,
    room: int = 7,
    detail: str = "5 s",
) -> FailureReport:
    return FailureReport(
        time=time,
        stage=Stage(stage),
        cause=Cause(cause),
        component=component,
        detail=detail,
        room=room,
    )


def sample(pod: str, state: str = "passed", **fields: Any) -> PreflightReport:
    """What decode says of its newest sample from a prefill pod."""
    base = PreflightReport(
        pod=pod,
        state=PreflightState(state),
        gbps=1.0,
        latency_ms=1.0,
        transport=Transport.TCP,
        transport_reason="",
        detail="late",
        cause=Cause.TIMEOUT if state == "failed" else None,
        at=1.0,
        passed_at=None,
    )
    return replace(base, **fields)
