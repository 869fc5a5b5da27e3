"""The condition PreflightPassed, from the rows that decode agents report."""

import pytest

from disagg_operator import names
from disagg_transfer.contract import Cause, PreflightReport, PreflightState, Transport


def row(pod, state="passed", **fields):
    return PreflightReport(
        pod=pod,
        state=PreflightState(state),
        gbps=fields.get("gbps", 1.0),
        latency_ms=1.0,
        transport=Transport.TCP,
        transport_reason="no RDMA device",
        detail="late",
        cause=Cause.TIMEOUT if state == "failed" else None,
        at=fields.get("at", 1.0),
        passed_at=None,
    )


@pytest.fixture
def sampled(world, reported):
    def sampled(*rows, **fields):
        world.tell(
            reported.report(world.decode, preflight=rows, **fields),
            reported.report(world.prefill, role="prefill"),
        )
        return world.condition(names.PREFLIGHT_PASSED)

    return sampled


def test_nothing_is_known_before_a_sample_has_ended(world, sampled):
    told = sampled()
    assert (told.status, told.reason) == ("Unknown", "PreflightPending")
    assert told.message == "no decode agent has sampled a prefill pod yet"
    told = sampled(row(world.prefill, "pending"))
    assert (told.status, told.reason) == ("Unknown", "PreflightPending")
    assert world.prefill in told.message


def test_passed_pairs_are_counted_and_the_transport_is_told_if_it_is_a_fallback(world, sampled):
    told = sampled(row(world.prefill), transport_reason="prefill pod p: no RDMA device")
    assert (told.status, told.reason) == ("True", "PreflightPassed")
    assert told.message == "1 pair of pods passed, over tcp: prefill pod p: no RDMA device"
    assert sampled(row(world.prefill)).message == "1 pair of pods passed"


def test_a_failed_pair_is_named_and_ready_does_not_wait_for_it(world, sampled):
    told = sampled(row(world.prefill, "failed"))
    assert (told.status, told.reason) == ("False", "PreflightFailed")
    assert told.message == (f"sample from pod {world.prefill} to pod {world.decode}: Timeout: late")
    assert world.condition(names.READY).status == "True"


def test_rows_of_pods_that_are_gone_do_not_count(world, sampled):
    assert sampled(row("gone", "failed"), row(world.prefill)).status == "True"


def test_a_faster_sample_is_no_reason_to_write_the_status(world, sampled):
    first = sampled(row(world.prefill, gbps=1.0, at=1.0))
    assert sampled(row(world.prefill, gbps=2.5, at=31.0)) == first


def test_there_is_no_condition_where_preflight_is_off(world, deployment):
    world.deployment = deployment(transfer={"preflight": {"mode": "Off"}})
    found = {condition.type for condition in world.status().conditions}
    assert names.PREFLIGHT_PASSED not in found
