"""The condition FabricReady, from what agents say of their transport."""

import pytest

from disagg_operator import names

REASON = "no RDMA device in this pod; request one for the agent's container"


@pytest.fixture
def told(world, reported, deployment):
    """The condition, None where there is none, after both agents told of their transport."""

    def told(policy, *, decode=("rdma", ""), prefill=("rdma", ""), extra=()):
        world.deployment = deployment(
            model={"stateTypes": ["kv", "mamba"]}, transfer={"transport": policy}
        )
        world.cluster.converge(world.deployment)
        world.tell(
            *extra,
            reported.report(only(world, "decode"), transport=decode[0], transport_reason=decode[1]),
            reported.report(
                only(world, "prefill"),
                role="prefill",
                transport=prefill[0],
                transport_reason=prefill[1],
            ),
        )
        found = {item.type: item for item in world.status().conditions}
        return found.get(names.FABRIC_READY), found[names.READY]

    return told


def only(world, role):
    """The pod of the newest revision."""
    (pod,) = (
        pod
        for pod in world.cluster.observed(world.deployment).role_pods(
            role, revision=world.cluster.decide(world.deployment).update_revision
        )
    )
    return pod.name


@pytest.mark.parametrize("policy", ["Any", "TCP"])
def test_nothing_is_said_of_rdma_where_nobody_asks_for_it(told, policy):
    fabric, _ = told(policy, decode=("tcp", REASON))
    assert fabric is None


@pytest.mark.parametrize("policy", ["PreferRDMA", "RequireRDMA"])
def test_reads_over_rdma_are_told(told, policy):
    fabric, ready = told(policy)
    assert (fabric.status, fabric.reason) == ("True", "FabricReady")
    assert ready.status == "True"


def test_a_fallback_of_a_preference_is_told_and_holds_nothing_back(told):
    fabric, ready = told("PreferRDMA", decode=("tcp", REASON), prefill=("tcp", REASON))
    assert (fabric.status, fabric.reason) == ("False", "NoRdma")
    assert "2 of 2 agents" in fabric.message
    assert fabric.message.endswith(f"uses tcp: {REASON}")
    assert ready.status == "True"


def test_some_agents_without_rdma_are_a_mixed_fabric(told, world):
    fabric, _ = told("PreferRDMA", decode=("tcp", REASON))
    assert (fabric.status, fabric.reason) == ("False", "MixedFabric")
    assert "1 of 2 agents" in fabric.message
    assert only(world, "decode") in fabric.message


def test_a_demand_that_is_not_met_is_the_reason_of_the_whole(told):
    fabric, ready = told("RequireRDMA", decode=("tcp", REASON))
    assert (fabric.status, fabric.reason) == ("False", "NoRdma")
    assert (ready.status, ready.reason) == ("False", "NoRdma")
    assert REASON in ready.message


def test_nothing_is_known_before_an_agent_has_read(told):
    fabric, ready = told("PreferRDMA", decode=("unknown", ""), prefill=("unknown", ""))
    assert (fabric.status, fabric.reason) == ("Unknown", "NoData")
    assert ready.status == "True"


def test_agents_of_pods_that_are_gone_do_not_count(told, reported):
    gone = reported.report("gone", transport="tcp", transport_reason=REASON)
    fabric, _ = told("PreferRDMA", extra=[gone])
    assert fabric.status == "True"
