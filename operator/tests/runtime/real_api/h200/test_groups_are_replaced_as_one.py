"""What breaks one pod of a group replaces the whole group, and no other."""

import contextlib
from datetime import timedelta

import pytest
from kubernetes.aio import client

from disagg_operator import names

pytestmark = pytest.mark.api

STRATEGIC = "application/strategic-merge-patch+json"


async def failed(core, pod):
    await core.patch_namespaced_pod_status(
        pod.metadata.name, pod.metadata.namespace, {"status": {"phase": "Failed"}}
    )


async def engine_restarted(core, pod):
    engine = {"name": names.CONTAINER_ENGINE, "restartCount": 1}
    await core.patch_namespaced_pod_status(
        pod.metadata.name,
        pod.metadata.namespace,
        {"status": {"containerStatuses": [engine]}},
        _content_type=STRATEGIC,
    )


async def deleted(core, pod):
    """By force, so that it is gone at once, as from a node that is gone."""
    await core.delete_namespaced_pod(
        pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0
    )


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (failed, ["pod {} ended: Failed"]),
        (engine_restarted, ["the engine of pod {} was restarted"]),
        # The server marks it first, and the operator may look before it is gone.
        (deleted, ["the pod of rank 1 is gone", "pod {} is being deleted"]),
    ],
    ids=["failed", "engine-restarted", "deleted"],
)
async def test_a_pod_takes_its_whole_group_with_it(ready, groups, until, harm, why):
    before = await groups()
    hurt = before["prefill", 1].pods[1]
    await harm(ready.clients.core, hurt)

    async def replaced():
        group = (await groups()).get(("prefill", 1))
        fresh = group is not None and group.ready and not group.uids & before["prefill", 1].uids
        return fresh and await ready.is_ready()

    await until(replaced, what="two other pods, and Ready again")
    after = await groups()
    assert after["prefill", 0].uids == before["prefill", 0].uids
    assert after["decode", 0].uids == before["decode", 0].uids
    roles = {role["name"]: role for role in (await ready.status())["roles"]}
    (told,) = roles["prefill"]["groups"]
    assert (told["group"], told["restarts"]) == (1, 1)
    assert told["reason"] in [words.format(hurt.metadata.name) for words in why]
    assert roles["decode"]["groups"] == []


async def test_a_second_restart_waits_and_says_until_when(resource, nodes, operator, groups, until):
    await nodes.add(6)
    await resource.apply(restart={"baseDelay": "3s", "maxRestarts": 10})
    await until(resource.is_ready, what="Ready")

    async def broken_again(before):
        found = (await groups()).get(("decode", 0))
        return found if found and found.ready and not found.uids & before.uids else None

    first = (await groups())["decode", 0]
    await failed(resource.clients.core, first.pods[1])
    second = await until(lambda: broken_again(first), what="the group is back at once")
    await failed(resource.clients.core, second.pods[1])

    async def held_back():
        status = await resource.status()
        return status if status["reason"] == names.REASON_RESTART_BACKOFF else None

    status = await until(held_back, what="the status says that it waits")
    assert "decode group 0 was replaced 2 times" in status["message"]
    assert f"pod {second.pods[1].metadata.name} ended: Failed" in status["message"]
    third = await until(lambda: broken_again(second), what="the group is back after its pause")
    created = [group.pods[0].metadata.creation_timestamp for group in (second, third)]
    assert created[1] - created[0] >= timedelta(seconds=2)  # of 3; told in whole seconds
    await until(resource.is_ready, what="Ready again")


async def test_a_group_that_broke_too_often_stays_down_and_says_why(
    resource, nodes, operator, groups, until
):
    await nodes.add(6)
    await resource.apply(restart={"baseDelay": "1s", "maxRestarts": 1})
    await until(resource.is_ready, what="Ready")

    async def limit_reached():
        status = await resource.status()
        if status["reason"] == names.REASON_RESTART_LIMIT:
            return status
        found = (await groups()).get(("prefill", 0))
        if found is not None and found.ready:
            with contextlib.suppress(client.ApiException):  # replaced just now
                await failed(resource.clients.core, found.pods[0])
        return None

    status = await until(limit_reached, what="it is not made again")
    assert "spec.restart.maxRestarts is 1" in status["message"]
    assert ("prefill", 0) not in await groups()
