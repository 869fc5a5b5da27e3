"""A changed spec steps in beside what serves, and never past the bounds of the rollout."""

import asyncio
import contextlib
from collections import Counter

import pytest
from kubernetes.aio import watch

from disagg_operator import names

pytestmark = pytest.mark.api

IMAGE = "registry.example.com/sglang-disagg:v0.5.24"
NODE_SELECTOR = "pool"


class Film:
    """Every moment of the pods of a namespace, in the order of the server."""

    def __init__(self, core, namespace, grouped):
        self.core, self.namespace, self.grouped = core, namespace, grouped
        self.pods = {}
        self.most, self.fewest = Counter(), Counter()
        self.together = False

    async def start(self):
        found = await self.core.list_namespaced_pod(self.namespace)
        for pod in found.items:
            self.keep("ADDED", pod)
        self.judge()
        self.task = asyncio.create_task(self.run(found.metadata.resource_version))

    async def run(self, version):
        async with watch.Watch() as watching:
            async for event in watching.stream(
                self.core.list_namespaced_pod, self.namespace, resource_version=version
            ):
                self.keep(event["type"], event["object"])
                self.judge()

    def keep(self, kind, pod):
        if pod.metadata.labels[names.LABEL_ROLE] not in names.ROLES:
            return
        if kind == "DELETED":
            del self.pods[pod.metadata.name]
        else:
            self.pods[pod.metadata.name] = pod

    def judge(self):
        groups = self.grouped(self.pods.values())
        self.together |= len({group.revision for group in groups}) > 1
        for role in names.ROLES:
            own = [group for group in groups if group.role == role]
            ready = sum(group.ready for group in own)
            self.most[role] = max(self.most[role], len(own))
            self.fewest[role] = min(self.fewest.get(role, ready), ready)

    async def stop(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def large(resource, nodes, operator, until):
    """Three prefill and two decode groups on ten nodes; a group of each role has room beside them."""
    await nodes.add(14)
    roles = {"prefill": {"replicas": 3}, "decode": {"replicas": 2}}
    for role, change in roles.items():
        resource.manifest["spec"]["roles"][role] |= change
    await resource.apply(rollout={"maxSurge": 1, "maxUnavailable": 0})
    await until(resource.is_ready, what="Ready")
    return resource


@pytest.fixture
async def film(large, grouped):
    film = Film(large.clients.core, large.namespace, grouped)
    await film.start()
    yield film
    await film.stop()


@pytest.fixture
def only(large, grouped):
    """Whether all is Ready and there are pods and children of one revision only, the given one."""

    async def only(revision):
        groups = grouped(await large.pods())
        alone = {group.revision for group in groups} == {revision}
        return alone and len(groups) == 5 and await large.is_ready()

    return only


async def changed(large, until, **spec):
    """The revision that the change leads to."""
    before = (await large.status())["updateRevision"]
    await large.patch({"spec": spec})

    async def begun():
        revision = (await large.status())["updateRevision"]
        return revision if revision != before else None

    return await until(begun, what="another revision is wanted")


async def test_groups_stay_within_surge_and_unavailable_at_every_moment(
    large, film, only, until, collected
):
    old = (await large.status())["currentRevision"]
    new = await changed(large, until, engine={"image": IMAGE})
    await until(lambda: only(new), what="the new revision alone", within_s=60)
    assert film.together
    assert film.most == {"prefill": 4, "decode": 3}
    assert film.fewest == {"prefill": 3, "decode": 2}
    images = {pod.spec.containers[0].image for pod in await large.pods()}
    assert images == {IMAGE}

    async def nothing_old():
        return all(old not in name for _, name, _ in await large.children())

    await collected(nothing_old, what="nothing of the old revision is left")


async def test_recreate_lets_no_two_revisions_be_there_together(large, film, only, until):
    new = await changed(large, until, engine={"image": IMAGE}, rollout={"strategy": "Recreate"})
    await until(lambda: only(new), what="the new revision alone", within_s=60)
    assert not film.together
    assert film.most == {"prefill": 3, "decode": 2}


@pytest.fixture
async def halted(large, nodes, film, grouped, until):
    """A rollout that has placed no new group yet: its pods wait for nodes that are to come."""
    spec = {"nodeSelector": {NODE_SELECTOR: f"{large.namespace}-later"}}
    roles = {role: {"template": {"spec": spec}} for role in names.ROLES}
    new = await changed(large, until, engine={"image": IMAGE}, roles=roles)

    async def waiting():
        found = [group for group in grouped(await large.pods()) if group.revision == new]
        return len(found) == 2 and (await large.status())["reason"] == names.REASON_UNSCHEDULABLE

    await until(waiting, what="a new group of each role waits for nodes")
    return new


async def test_an_edit_taken_back_leaves_what_served(large, halted, film, only, grouped, until):
    old = (await large.status())["currentRevision"]
    uids = {uid for g in grouped(await large.pods()) if g.revision == old for uid in g.uids}
    spec = large.manifest["spec"]
    roles = {role: {"template": spec["roles"][role]["template"]} for role in names.ROLES}
    await large.patch({"spec": {"engine": {"image": spec["engine"]["image"]}, "roles": roles}})
    await until(lambda: only(old), what="the old revision alone, Ready")
    assert {uid for group in grouped(await large.pods()) for uid in group.uids} == uids
    assert film.fewest == {"prefill": 3, "decode": 2}


async def test_a_paused_rollout_stands_still_and_goes_on(
    large, halted, nodes, operator, film, only, grouped, until
):
    await large.patch({"spec": {"paused": True}})

    async def paused():
        return (await large.status())["phase"] == names.PHASE_PAUSED

    await until(paused, what="the status says so")
    nodes.pool = f"{large.namespace}-later"
    await nodes.add(14)

    async def placed():
        found = [group for group in grouped(await large.pods()) if group.revision == halted]
        return all(group.ready for group in found)

    await until(placed, what="the new groups are ready")
    passes, writes = operator.metrics.passes.total(), pod_writes(operator)
    await large.patch({"metadata": {"annotations": {"touched": "yes"}}})

    async def passed():
        return operator.metrics.passes.total() > passes

    await until(passed, what="a pass over two groups that could go on")
    assert pod_writes(operator) == writes
    assert len(grouped(await large.pods())) == 7
    await large.patch({"spec": {"paused": False}})
    await until(lambda: only(halted), what="the new revision alone", within_s=60)


def pod_writes(operator):
    requests = operator.metrics.requests
    reads = {"list", "watch"}
    return sum(n for (verb, kind, _), n in requests.items() if kind == "pods" and verb not in reads)


async def test_a_role_grown_during_a_rollout_ends_up_large_and_new(
    large, halted, nodes, film, grouped, until
):
    await large.patch({"spec": {"roles": {"decode": {"replicas": 3}}}})
    nodes.pool = f"{large.namespace}-later"
    await nodes.add(16)

    async def grown():
        groups = grouped(await large.pods())
        count = Counter(group.role for group in groups)
        fresh = {group.revision for group in groups} == {halted}
        return fresh and count == {"prefill": 3, "decode": 3} and await large.is_ready()

    await until(grown, what="three groups of each role, all new", within_s=60)
    assert film.fewest == {"prefill": 3, "decode": 2}
    assert film.most["prefill"] == 4
    assert film.most["decode"] <= 4
