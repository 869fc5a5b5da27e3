"""The same on simulated H200 nodes: kwok starts and ends pods, and nodes can die."""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from dataclasses import dataclass

import pytest
from kubernetes.aio import client

from disagg_cluster import kwok
from disagg_fleet import fleet
from disagg_operator import names

# For what asks for no H200, such as routers; every test adds H200 nodes of its own.
PLAIN_NODES = 2
POOL = "pool"
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture(scope="session")
def kubeconfig():
    with fleet(nodes=PLAIN_NODES) as path:
        yield path


class Nodes:
    """The nodes of one test, which its pods are bound to by a label."""

    numbers = itertools.count(PLAIN_NODES)

    def __init__(self, core, pool):
        self.core, self.pool = core, pool
        self.names = []

    async def add(self, count, *, product=kwok.GPU_PRODUCT):
        for number in itertools.islice(self.numbers, count):
            body = kwok.render_node(number, tainted=False)
            body["metadata"]["labels"] |= {POOL: self.pool, "nvidia.com/gpu.product": product}
            body["spec"]["taints"] = [GPU_TAINT]
            await self.core.create_node(body)
            self.names.append(body["metadata"]["name"])

    async def die(self, name):
        """Its kubelet says nothing more, and does nothing for its pods any more.

        Then comes what the node controller writes when the node's lease has run out, 50 s later.
        """
        dead = {"metadata": {"annotations": {kwok.DEAD: "true"}}}
        await self.core.patch_node(name, dead, _content_type=STRATEGIC)
        pods = await self.core.list_namespaced_pod(
            self.pool, field_selector=f"spec.nodeName={name}"
        )
        for pod in pods.items:
            await self.core.patch_namespaced_pod(
                pod.metadata.name, self.pool, dead, _content_type=STRATEGIC
            )
            await self.core.patch_namespaced_pod_status(
                pod.metadata.name,
                self.pool,
                {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
                _content_type=STRATEGIC,
            )
        unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        await self.core.patch_node_status(
            name, {"status": {"conditions": [unknown]}}, _content_type=STRATEGIC
        )

    async def remove(self, name):
        await self.core.delete_node(name)

    async def clear(self):
        for name in self.names:
            with contextlib.suppress(client.ApiException):
                await self.core.delete_node(name)


@pytest.fixture
async def nodes(clients, namespace):
    nodes = Nodes(clients.core, namespace)
    yield nodes
    await nodes.clear()


@pytest.fixture
def example():
    return "deepseek-v3.2-h200-2x8.yaml"


@pytest.fixture
async def resource(resource, namespace):
    """Two prefill groups and one decode group of 2 nodes x 8 GPUs each."""
    for role in resource.manifest["spec"]["roles"].values():
        role["template"]["spec"]["nodeSelector"] = {POOL: namespace}
    # kwok opens readiness gates by itself, so there would be nothing to see of them.
    resource.manifest["spec"]["transfer"]["preflight"]["mode"] = "Observe"
    yield resource
    with contextlib.suppress(client.ApiException):
        await resource.delete()


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pods of one group at one moment, by rank."""

    role: str
    revision: str
    index: int
    pods: dict

    @property
    def ready(self):
        return len(self.pods) == 2 and all(is_ready(pod) for pod in self.pods.values())

    @property
    def uids(self):
        return {pod.metadata.uid for pod in self.pods.values()}

    @property
    def nodes(self):
        return {pod.spec.node_name for pod in self.pods.values()}


def is_ready(pod):
    conditions = pod.status.conditions or ()
    ready = any(item.type == "Ready" and item.status == "True" for item in conditions)
    return ready and pod.metadata.deletion_timestamp is None


def grouped(pods):
    found = defaultdict(dict)
    for pod in pods:
        labels = pod.metadata.labels
        key = labels[names.LABEL_ROLE], labels[names.LABEL_REVISION], labels[names.LABEL_GROUP]
        found[key][int(labels[names.LABEL_RANK])] = pod
    return [
        Group(role=role, revision=revision, index=int(index), pods=pods)
        for (role, revision, index), pods in sorted(found.items())
    ]


@pytest.fixture(scope="session", name="grouped")
def grouped_():
    return grouped


@pytest.fixture
def groups(resource):
    """The groups that there are now, by role and index; of one revision."""

    async def look():
        found = grouped(await resource.pods())
        assert len({group.revision for group in found}) <= 1
        return {(group.role, group.index): group for group in found}

    return look


@pytest.fixture
async def ready(resource, nodes, operator, until):
    """The example, Ready on six nodes; two more are free."""
    await nodes.add(8)
    await resource.apply()
    await until(resource.is_ready, what="the example is Ready")
    return resource


class Agents:
    """An agent in every pod that runs, as it comes and goes; `tell` says what all of them say."""

    def __init__(self, resource, fake_agent, report):
        self.resource, self.fake_agent, self.report = resource, fake_agent, report
        self.running = {}
        self.fields = {}
        self.over = asyncio.Event()

    async def run(self):
        while not self.over.is_set():
            pods = {pod.metadata.uid: pod for pod in await self.resource.pods()}
            for uid in set(self.running) - set(pods):
                await self.running.pop(uid).stop()
            for uid, pod in pods.items():
                if uid not in self.running and pod.status.pod_ip:
                    with contextlib.suppress(client.ApiException):  # its key is gone, so is it soon
                        self.running[uid] = await self.started(pod)
            await asyncio.sleep(0.05)
        for agent in self.running.values():
            await agent.stop()

    async def started(self, pod):
        role = pod.metadata.labels[names.LABEL_ROLE]
        report = self.report(pod.metadata.name, role=role, **self.fields)
        key_file = await self.resource.key_file(pod.metadata.labels[names.LABEL_REVISION])
        agent = self.fake_agent(pod.metadata.name, pod.status.pod_ip, report, key_file)
        await agent.start()
        return agent

    def tell(self, **fields):
        self.fields |= fields
        for agent in self.running.values():
            known = agent.report
            agent.tell(
                self.report(agent.pod, role=known.role, cursor=known.cursor + 1, **self.fields)
            )


@pytest.fixture(autouse=True)
async def agents(resource, fake_agent, reported):
    agents = Agents(resource, fake_agent, reported.report)
    task = asyncio.create_task(agents.run())
    yield agents
    # Not cancelled: in the midst of a start or an end that would leave sockets open.
    agents.over.set()
    await task
