"""The report survives its wire form; anything else is refused by the field's name."""

import dataclasses
import json

import pytest

from disagg_transfer.contract import (
    REPORT_VERSION,
    ArenaReport,
    Cause,
    ComponentReport,
    EngineReport,
    FailureReport,
    MismatchReport,
    PairReport,
    PeerReport,
    PeerState,
    PreflightReport,
    PreflightState,
    Report,
    ReportError,
    Role,
    Stage,
    StateTypeReport,
    Transport,
    parse_report,
)

FAILURE = FailureReport(
    time=1.5,
    stage=Stage.NOTIFY,
    cause=Cause.TIMEOUT,
    component=None,
    detail="late",
    room=2**63 - 1,
)
PAIR = PairReport(prefill_pod="p", decode_pod="d", last_success=None, last_failure=FAILURE)
REPORT = Report(
    version=REPORT_VERSION,
    cursor=7,
    incarnation="abc",
    pod="d",
    role=Role.DECODE,
    revision="r1",
    time=2.0,
    engine=EngineReport(
        connected=True,
        components=(
            ComponentReport(
                name="kv", state_type="kv", item_bytes=1, layers=2, dtype="f", page_size=16
            ),
        ),
    ),
    ready=False,
    not_ready_reason="NoPeers",
    not_ready_message="none",
    transport="tcp",
    layout_mismatch=(
        MismatchReport(field="model", prefill="a", decode="b", prefill_pod="p", decode_pod="d"),
    ),
    peers=(PeerReport(pod="p", incarnation="i", state=PeerState.UP, detail=""),),
    state_types=(
        StateTypeReport(
            type="kv",
            transfers=1,
            bytes=2,
            timeouts=3,
            failures=4,
            pairs=(PAIR,),
        ),
    ),
    inflight=0,
    arena=ArenaReport(bytes=1, used=0, unsettled=0),
    faults=("withhold:kv",),
    transport_reason="no RDMA device",
    preflight=(
        PreflightReport(
            pod="p",
            state=PreflightState.FAILED,
            gbps=1.5,
            latency_ms=None,
            transport=Transport.TCP,
            transport_reason="no RDMA device",
            detail="late",
            cause=Cause.TIMEOUT,
            at=2.0,
            passed_at=None,
        ),
    ),
    strangers_refused=3,
)


def test_a_report_is_read_as_it_was_written():
    assert parse_report(REPORT.to_json()) == REPORT


def test_the_wire_names_are_camel_case():
    value = json.loads(REPORT.to_json())
    assert value["stateTypes"][0]["pairs"][0]["prefillPod"] == "p"
    assert value["stateTypes"][0]["pairs"][0]["lastFailure"]["room"] == 2**63 - 1
    assert value["notReadyReason"] == "NoPeers"
    assert value["engine"]["components"][0]["itemBytes"] == 1


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["cursor"], "7", "report.cursor: '7' is not a int"),
        (["cursor"], True, "report.cursor: True is not a int"),
        (["role"], "both", "report.role: 'both' is not one of prefill, decode"),
        (
            ["stateTypes", 0, "pairs", 0, "lastFailure", "cause"],
            "Bad",
            r"pairs\[0\].lastFailure.cause: 'Bad' is not one",
        ),
        (["peers"], {}, "report.peers: {} is not a list"),
        (["arena", "free"], 1, "report.arena.free: unknown field"),
        (["preflight", 0, "transport"], "ipx", "transport: 'ipx' is not one of rdma"),
        (["version"], 3, "report.version: 3 is not within 1..2; .*upgrade the operator first"),
        (["version"], 0, "report.version: 0 is not within 1..2"),
        (["version"], True, "report.version: True is not within 1..2"),
    ],
)
def test_a_bad_field_is_refused_by_name(path, value, told):
    data = json.loads(REPORT.to_json())
    target = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(ReportError, match=told):
        parse_report(json.dumps(data).encode())


@pytest.mark.parametrize("name", ["cursor", "stateTypes", "notReadyReason"])
def test_a_missing_field_is_refused_by_name(name):
    data = json.loads(REPORT.to_json())
    del data[name]
    with pytest.raises(ReportError, match=f"report.{name}: missing"):
        parse_report(json.dumps(data).encode())


def older(**changes):
    """The report as an agent of version 1 writes it."""
    data = json.loads(REPORT.to_json())
    for name in ("transportReason", "preflight", "strangersRefused"):
        del data[name]
    return json.dumps({**data, "version": 1, **changes}).encode()


def test_an_older_agent_s_report_is_read_without_what_it_does_not_know():
    report = parse_report(older())
    assert (report.transport_reason, report.preflight, report.strangers_refused) == ("", (), 0)
    same = {"version": 2, "transport_reason": "no RDMA device", "preflight": REPORT.preflight}
    assert dataclasses.replace(report, strangers_refused=3, **same) == REPORT


def test_a_newer_version_s_field_in_an_older_report_is_refused_by_name():
    with pytest.raises(ReportError, match=r"report\.preflight: unknown field"):
        parse_report(older(preflight=[]))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"{"])
def test_what_is_no_report_is_refused(data):
    with pytest.raises(ReportError):
        parse_report(data)


def test_a_row_s_newest_success_and_failure_are_those_of_its_pairs():
    (row,) = REPORT.state_types
    later = dataclasses.replace(FAILURE, time=9.0)
    pairs = (
        dataclasses.replace(PAIR, last_success=3.0, last_failure=later),
        dataclasses.replace(PAIR, decode_pod="e", last_success=5.0),
        dataclasses.replace(PAIR, decode_pod="f", last_failure=None),
    )
    row = dataclasses.replace(row, pairs=pairs)
    assert (row.last_success, row.last_failure) == (5.0, later)
    bare = dataclasses.replace(row, pairs=())
    assert (bare.last_success, bare.last_failure) == (None, None)


def test_a_null_is_read_where_it_may_be():
    bare = dataclasses.replace(REPORT, not_ready_reason=None, ready=True)
    assert parse_report(bare.to_json()) == bare
