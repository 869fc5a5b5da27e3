"""The condition PreflightPassed, from the rows that decode agents report."""

import functools

import pytest

from disagg_operator import names


@pytest.fixture
def row(reported):
    return functools.partial(reported.sample, transport_reason="no RDMA device")


@pytest.fixture
def sampled(world, reported):
    def sampled(*rows, **fields):
        world.tell(
            reported.report(world.decode, preflight=rows, **fields),
            reported.report(world.prefill, role="prefill"),
        )
        return world.condition(names.PREFLIGHT_PASSED)

    return sampled


def test_nothing_is_known_before_a_sample_has_ended(world, sampled, row):
    told = sampled()
    assert (told.status, told.reason) == ("Unknown", "PreflightPending")
    assert told.message == "no decode agent has sampled a prefill pod yet"
    told = sampled(row(world.prefill, "pending"))
    assert (told.status, told.reason) == ("Unknown", "PreflightPending")
    assert world.prefill in told.message


def test_passed_pairs_are_counted_and_the_transport_is_told_if_it_is_a_fallback(
    world, sampled, row
):
    told = sampled(row(world.prefill), transport_reason="prefill pod p: no RDMA device")
    assert (told.status, told.reason) == ("True", "PreflightPassed")
    assert told.message == "1 pair of pods passed, over tcp: prefill pod p: no RDMA device"
    assert sampled(row(world.prefill)).message == "1 pair of pods passed"


def test_a_failed_pair_is_named_and_ready_does_not_wait_for_it(world, sampled, row):
    told = sampled(row(world.prefill, "failed"))
    assert (told.status, told.reason) == ("False", "PreflightFailed")
    assert told.message == (f"sample from pod {world.prefill} to pod {world.decode}: Timeout: late")
    assert world.condition(names.READY).status == "True"


def test_rows_of_pods_that_are_gone_do_not_count(world, sampled, row):
    assert sampled(row("gone", "failed"), row(world.prefill)).status == "True"


def test_a_faster_sample_is_no_reason_to_write_the_status(world, sampled, row):
    first = sampled(row(world.prefill, gbps=1.0, at=1.0))
    assert sampled(row(world.prefill, gbps=2.5, at=31.0)) == first


def test_there_is_no_condition_where_preflight_is_off(world, deployment):
    world.deployment = deployment(transfer={"preflight": {"mode": "Off"}})
    found = {condition.type for condition in world.status().conditions}
    assert names.PREFLIGHT_PASSED not in found


def told_status(world):
    return world.status().preflight


def test_there_is_nothing_to_tell_before_there_are_pairs(world, sampled):
    sampled()
    assert told_status(world) is None


def test_pairs_are_counted_and_those_that_failed_are_named(world, sampled, row):
    sampled(row(world.prefill))
    assert told_status(world).pairs == "1/1"
    assert told_status(world).failed == ()
    sampled(row(world.prefill, "failed"))
    told = told_status(world)
    assert told.pairs == "0/1"
    (pair,) = told.failed
    assert (pair.prefill_pod, pair.decode_pod, pair.cause) == (
        world.prefill,
        world.decode,
        "Timeout",
    )
    sampled(row(world.prefill, "pending"))
    assert (told_status(world).pairs, told_status(world).failed) == ("0/1", ())


def test_the_slowest_pair_is_told_anew_when_it_has_halved_or_doubled(world, sampled, row):
    told = []
    for gbps in (1.234, 1.9, 0.7, 2.6, 1.4, 0.6):
        sampled(row(world.prefill, gbps=gbps))
        told.append(told_status(world).slowest_gbps)
    assert told == [1.2, 1.2, 1.2, 2.6, 2.6, 0.6]


def test_the_failed_pairs_told_have_an_end(world, sampled, reported, row):
    world.deployment = world.deployment.with_roles(
        world.deployment.spec.roles.model_copy(
            update={
                "prefill": world.deployment.spec.roles.prefill.model_copy(update={"replicas": 12})
            }
        )
    )
    world.cluster.converge(world.deployment)
    decode = world.decode
    prefills = [
        name for name in world.cluster.observed(world.deployment).pods if "-prefill-" in name
    ]
    world.tell(reported.report(decode, preflight=tuple(row(name, "failed") for name in prefills)))
    assert told_status(world).pairs == "0/12"
    assert len(told_status(world).failed) == 10
