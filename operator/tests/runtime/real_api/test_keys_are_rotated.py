import asyncio
import itertools

import pytest
from kubernetes.aio import client

from disagg_operator import names
from disagg_transfer.contract import key_id

pytestmark = pytest.mark.api

LONG_AGO = "2020-01-01T00:00"


async def rotate(resource, until):
    """Puts the last rotation into the past: anew until the operator trusts its own write no more."""
    tries = itertools.count()

    async def done():
        # Oftener, and we would mostly overwrite what the operator has just written.
        await asyncio.sleep(1)
        keys = (await resource.status())["keys"]
        if next(tries) and not keys["time"].startswith(LONG_AGO):
            return keys
        await resource.clients.custom.patch_namespaced_custom_object_status(
            names.GROUP, names.VERSION, resource.namespace, names.PLURAL, resource.name,
            {"status": {"keys": {"time": f"{LONG_AGO}:{next(tries) % 60:02d}Z"}}},
            _content_type="application/merge-patch+json",
        )  # fmt: skip
        return None

    return await until(done, what="a rotation", within_s=30)


async def secret_of(resource):
    revision = (await resource.status())["updateRevision"]
    name = names.key_secret_name(resource.name, revision=revision)
    found = await resource.clients.core.read_namespaced_secret(name, resource.namespace)
    return found, (await resource.key_file(revision)).decode().split()


async def test_a_rotation_replaces_the_oldest_key_and_no_pod(ready, agents, until):
    first, before = await secret_of(ready)
    pods = {pod.metadata.uid for pod in (await ready.agents()).values()}
    keys = await rotate(ready, until)
    second, after = await secret_of(ready)
    assert keys["generation"] == 2
    assert second.metadata.uid == first.metadata.uid
    assert second.metadata.owner_references == first.metadata.owner_references
    assert (after[1], after[0] in before) == (before[0], False)
    assert keys["key"] == key_id(bytes.fromhex(after[0])).hex()
    assert {pod.metadata.uid for pod in (await ready.agents()).values()} == pods

    # Both tokens reach an agent: decode has the new file, prefill has the old one still.
    agents["decode"].key_file = "\n".join(after).encode()
    for agent in agents.values():
        agent.tell(agent.report)

    async def heard():
        return (await ready.status())["transfer"]["reportingAgents"] == len(agents)

    await until(heard, what="both agents' reports")
    assert (await ready.condition("TransferHealthy"))["reason"] != "ReportRefused"
    assert second.metadata.resource_version == (await secret_of(ready))[0].metadata.resource_version


async def test_a_secret_that_an_older_operator_made_for_good_stays(ready, until):
    first, before = await secret_of(ready)
    await ready.clients.core.patch_namespaced_secret(
        first.metadata.name, ready.namespace, {"immutable": True}
    )
    await rotate(ready, until)
    assert (await ready.status())["keys"]["generation"] == 1
    assert (await secret_of(ready))[1] == before
    assert (await ready.condition("Degraded")).get("status") != "True"


async def test_a_period_is_whole_hours_or_never(resource):
    for wrong in ("30m", "0h", "never", "1h30m"):
        with pytest.raises(client.ApiException, match="keyRotation"):
            await resource.apply(transfer={"keyRotation": wrong})
    for right in ("1h", "9999h", "Never"):
        await resource.apply(transfer={"keyRotation": right})
        await resource.delete()
