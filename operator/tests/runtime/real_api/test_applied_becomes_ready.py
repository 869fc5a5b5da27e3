"""An applied resource becomes Ready, with few writes, and stays as it was rendered."""

import asyncio

import pytest

from disagg_operator import names

pytestmark = pytest.mark.api


async def test_applied_example_becomes_ready_with_its_children(ready, until):
    kinds = sorted(kind for kind, _, _ in await ready.children())
    assert kinds == [
        *["budget"] * 2,
        *["deployment"],
        *["pod"] * 3,
        *["policy"] * 2,
        *["replicaset"],
        *["secret"],
        *["service"] * 3,
    ]
    status = await ready.status()
    assert (status["phase"], status["prefill"], status["decode"]) == ("Ready", "1/1", "1/1")
    assert status["url"].startswith(f"http://{ready.name}.")
    assert "RevisionServing" in await until(ready.events, what="an Event")


READS = {"discover", "list", "watch"}


async def test_creation_takes_few_writes(ready, operator):
    assert operator.metrics.ready_seconds.count == 1
    writes = {k: n for k, n in operator.metrics.requests.items() if k[0] not in READS}
    pods = sum(n for (verb, kind, _), n in writes.items() if (verb, kind) == ("create", "pods"))
    assert pods == 2
    assert sum(writes.values()) - pods <= 15, writes


async def test_pass_over_a_converged_resource_makes_no_call(ready, operator, until):
    def calls():
        """But for watches, which the server ends every 30 s."""
        return operator.metrics.requests.total() - operator.metrics.requests_of("watch")

    async def quiet():
        before = calls()
        await asyncio.sleep(0.3)
        return calls() == before

    await until(quiet, what="no more calls")
    versions, requests = await ready.written(), calls()
    passes = operator.metrics.passes.total()
    await ready.patch({"metadata": {"annotations": {"touched": "yes"}}})

    async def passed():
        return operator.metrics.passes.total() > passes

    await until(passed, what="a pass")
    assert await quiet()
    assert calls() == requests
    assert await ready.written() == versions


async def test_service_changed_by_hand_is_put_back(ready, until):
    await ready.clients.core.patch_namespaced_service(
        ready.name, ready.namespace, {"spec": {"selector": {names.LABEL_ROLE: "nobody"}}}
    )

    async def back():
        service = await ready.clients.core.read_namespaced_service(ready.name, ready.namespace)
        return service.spec.selector[names.LABEL_ROLE] == names.ROUTER

    await until(back, what="the selector is ours again")


async def test_operator_restarted_half_way_finishes(resource, kubelet, namespace, until, running):
    with running(namespace):
        await resource.apply()

        async def begun():
            return len(await resource.children()) >= 1

        await until(begun, what="first children")
    with running(namespace):
        await until(resource.is_ready, what="Ready")
