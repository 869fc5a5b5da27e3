"""Pods with preflight.mode Required are Ready by what their agents report."""

import pytest

from disagg_transfer.contract import PeerReport, PeerState

pytestmark = pytest.mark.api


async def test_gates_follow_the_samples_and_leave_the_kubelets_conditions_alone(
    resource, kubelet, operator, agents_of, reported, until
):
    await resource.apply(transfer={"preflight": {"mode": "Required"}})
    agents = await agents_of(resource)
    prefill, decode = agents["prefill"], agents["decode"]
    peer = PeerReport(pod=prefill.pod, incarnation="a", state=PeerState.UP, detail="")

    def tell(state, cursor):
        row = reported.sample(prefill.pod, state)
        decode.tell(reported.report(decode.pod, cursor=cursor, preflight=(row,), peers=(peer,)))

    async def held():
        told = await resource.condition("DecodeReady")
        return told if told.get("reason") == "PreflightPending" else None

    assert (
        "is held back until state is seen to move"
        in (await until(held, what="told that the pods wait for their gates"))["message"]
    )
    tell("passed", 2)
    await until(resource.is_ready, what="Ready by open gates")
    pod = (await resource.agents())["prefill"]
    conditions = {item.type: item for item in pod.status.conditions}
    assert conditions.keys() >= {"PodScheduled", "Ready", "disagg.dev/state-moves"}
    assert conditions["disagg.dev/state-moves"].reason == "StateMoves"
    tell("failed", 3)

    async def closed():
        told = await resource.condition("DecodeReady")
        return told if told.get("reason") == "PreflightFailed" else None

    assert "Timeout: late" in (await until(closed, what="held, and why"))["message"]
    tell("passed", 4)
    await until(resource.is_ready, what="Ready again")
