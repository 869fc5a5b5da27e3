"""Whatever the API server does, and whenever the operator dies, the same objects come of a resource."""

import asyncio
import os
import re

import aiohttp
import pytest
from kubernetes.aio import client

from disagg_fleet import Fault, OperatorProcess

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

START_S = 30.0
# With a resync of 300 s in between nothing but watches and retries can be what heals.
CONVERGE_S = 90.0


@pytest.fixture
def started(faulty, tmp_path):
    """Operator processes, of namespaces of their own; killed at the end."""
    running = []

    def start(namespace):
        log = tmp_path / f"{namespace}.log"
        operator = OperatorProcess(faulty.kubeconfig, namespace=namespace, log=log)
        operator.__enter__()
        running.append(operator)
        return operator

    yield start
    for operator in running:
        operator.kill()


async def named(resource):
    """What there is, by kind and name; ReplicaSets and router pods are others' work."""
    found = {(kind, name) for kind, name, _ in await resource.children()}
    return {(kind, name) for kind, name in found if kind != "replicaset" and "-router-" not in name}


async def converged(resource, until):
    async def ready():
        try:  # a server that has just started refuses a kind at a time
            return await resource.is_ready() and await named(resource)
        except (client.ApiException, aiohttp.ClientError):
            return None

    return await until(ready, what=f"{resource.namespace} is Ready", within_s=CONVERGE_S)


# A life has some 17 writes, the last of which are statuses. All of them take two minutes.
EVERY = range(1, 15)
KILLED_AFTER = EVERY if os.environ.get("DISAGG_EVERY_WRITE") else (1, 2, 4, 6, 9, 13)
ROLLED_OUT_AFTER = EVERY if os.environ.get("DISAGG_EVERY_WRITE") else (2, 6, 11)
WHOLE = {"pod": 2, "service": 3, "secret": 1, "budget": 2, "policy": 2}


def counted(found):
    kinds = [kind for kind, _ in found]
    return {kind: kinds.count(kind) for kind in WHOLE}


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.BROKEN, Fault.LOST])
async def test_every_third_write_fails_and_nothing_is_lost_or_doubled(
    fault, faulty, started, resource, kubelet, until
):
    asked = []

    def judge(write):
        asked.append(write)
        return fault if len(asked) % 3 == 0 else Fault.NONE

    faulty.judge = judge
    started(resource.namespace)
    await resource.apply()
    assert counted(await converged(resource, until)) == WHOLE
    assert len(asked) < 80, "a storm of writes"


async def test_watches_that_break_or_are_too_old_cost_nothing(
    faulty, started, resource, kubelet, until
):
    started(resource.namespace)
    await resource.apply()
    await converged(resource, until)
    for gone in (False, True, False):
        assert faulty.cut_watches(gone=gone) >= 6
        replaced = await resource.lose_decode()
        await until(replaced, what="another decode pod", within_s=CONVERGE_S)
    assert counted(await converged(resource, until)) == WHOLE


class Life:
    """An operator's life that ends right after its `last` write has reached the server."""

    def __init__(self, operator, *, last):
        self.operator, self.last, self.writes = operator, last, 0
        self.ended = asyncio.Event()

    def wrote(self):
        self.writes += 1
        if self.writes == self.last:
            self.operator.kill()
            self.ended.set()

    async def has_ended(self, *, within_s):
        async with asyncio.timeout(within_s):
            await self.ended.wait()


async def three_at_a_time(work, numbers):
    free = asyncio.Semaphore(3)

    async def in_turn(number):
        async with free:
            return await work(number)

    return await asyncio.gather(*map(in_turn, numbers))


@pytest.fixture
async def lives(faulty, started):
    """Begins lives by namespace; a write of a namespace counts for the life that it has."""
    found = {}

    def done(write):
        namespace = re.search(r"/namespaces/([^/]+)/", write.path)
        if namespace and namespace[1] in found:
            found[namespace[1]].wrote()

    faulty.done = done

    def begin(namespace, *, last):
        found[namespace] = Life(started(namespace), last=last)
        return found[namespace]

    return begin


async def test_an_operator_killed_after_any_of_its_writes_is_continued_by_the_next(
    lives, new_resource, until
):
    undisturbed = await new_resource()
    whole = lives(undisturbed.namespace, last=None)
    await undisturbed.apply()
    wanted = counted(await converged(undisturbed, until))
    assert wanted == WHOLE

    async def killed_after(number):
        resource = await new_resource()
        await resource.apply()
        life = lives(resource.namespace, last=number)
        await life.has_ended(within_s=START_S + CONVERGE_S)
        again = lives(resource.namespace, last=None)
        assert counted(await converged(resource, until)) == wanted, number
        again.operator.kill()
        return life.writes + again.writes

    writes = await three_at_a_time(killed_after, KILLED_AFTER)
    assert max(writes) <= 2 * whole.writes, writes


async def test_a_rollout_that_ends_with_any_of_its_writes_is_continued_by_the_next(
    lives, new_resource, until
):
    async def killed_after(number):
        resource = await new_resource()
        await resource.apply()
        life = lives(resource.namespace, last=None)
        await converged(resource, until)
        before = (await resource.status())["currentRevision"]
        life.last = life.writes + number
        await resource.patch({"spec": {"engine": {"args": ["--seed", "7"]}}})
        await life.has_ended(within_s=CONVERGE_S)
        again = lives(resource.namespace, last=None)

        async def only_new():
            found = await named(resource)
            old = any(before in name for _, name in found)
            return not old and counted(found) == WHOLE and await resource.is_ready()

        await until(only_new, what=f"the new revision alone, {number}", within_s=CONVERGE_S)
        again.operator.kill()

    await three_at_a_time(killed_after, ROLLED_OUT_AFTER)
