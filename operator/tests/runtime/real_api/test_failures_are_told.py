"""What fails is in the status, told by Events, and replaced."""

import time

import pytest

pytestmark = pytest.mark.api


async def test_status_of_a_timeout_is_there_within_a_second(ready, agents, reported, until):
    prefill, decode = agents["prefill"], agents["decode"]

    async def reporting():
        return (await ready.status())["transfer"]["reportingAgents"] == 2

    await until(reporting, what="both agents report")
    failure = reported.failure(time=time.time())
    pair = reported.pair(prefill.pod, decode.pod, failure=failure)
    row = reported.row("mamba", pair, timeouts=1, failures=1)
    decode.tell(reported.report(decode.pod, rows=[row], cursor=2))
    told_at = time.monotonic()

    async def unhealthy():
        condition = await ready.condition("TransferHealthy")
        return condition if condition["status"] == "False" else None

    condition = await until(unhealthy, what="the timeout in the status", within_s=5)
    assert time.monotonic() - told_at < 1.0
    assert condition["reason"] == "StateTransferTimeout"
    assert condition["message"].startswith(f"mamba from pod {prefill.pod} to pod {decode.pod}")
    assert (await ready.status())["reason"] == "StateTransferTimeout"

    async def told():
        return (await ready.events()).get("TransferTimeout")

    assert "mamba" in await until(told, what="the Event")
    pair = reported.pair(prefill.pod, decode.pod, success=time.time() + 1, failure=failure)
    healed = reported.row("mamba", pair, transfers=1, timeouts=1, failures=1)
    decode.tell(reported.report(decode.pod, rows=[healed], cursor=3))
    await until(ready.is_ready, what="Ready again")

    async def recovered():
        return "TransferRecovered" in await ready.events()

    await until(recovered, what="the Event of recovery")


async def test_failed_pod_is_replaced_and_told(ready, operator, until):
    pod = (await ready.agents())["decode"]
    await ready.clients.core.patch_namespaced_pod_status(
        pod.metadata.name, ready.namespace, {"status": {"phase": "Failed"}}
    )

    async def replaced():
        found = (await ready.agents()).get("decode")
        return found is not None and found.metadata.uid != pod.metadata.uid

    await until(replaced, what="another pod of that name")
    await until(ready.is_ready, what="Ready again")

    async def told():
        return "PodRecreated" in await ready.events()

    await until(told, what="the Event")
    assert operator.metrics.group_restarts == {"decode": 1}
