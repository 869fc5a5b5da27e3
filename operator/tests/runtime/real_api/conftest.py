"""The whole operator on a real API server: with a fake kubelet and fake agents, unless said otherwise."""

import asyncio
import base64
import contextlib
import copy
import functools
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.aio import client, config

from disagg_fleet import FakeAgent, FakeKubelet, FaultyApi
from disagg_operator import names
from disagg_operator.__main__ import assembled, operate
from disagg_operator.settings import Settings

EXAMPLES = Path(__file__).parents[4] / "examples"
KIND = (names.GROUP, names.VERSION)
DEADLINE_S = 20.0
STOP_WITHIN_S = 10.0
# TLS connections finish closing only after aiohttp has closed the session.
TLS_CLOSE_S = 0.2
# The garbage collector looks for new kinds only every 30 s.
GARBAGE_DEADLINE_S = 75.0


async def until(probe, *, what, within_s=DEADLINE_S):
    """The probe's first truthy answer; fails when none came in time."""
    deadline = time.monotonic() + within_s
    while True:
        found = await probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session", name="until")
def until_():
    return until


@pytest.fixture(scope="session")
def collected():
    """`until` for what the garbage collector does."""
    return functools.partial(until, within_s=GARBAGE_DEADLINE_S)


@pytest.fixture
async def clients(kubeconfig, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        yield SimpleNamespace(
            core=client.CoreV1Api(api),
            apps=client.AppsV1Api(api),
            custom=client.CustomObjectsApi(api),
        )
    await asyncio.sleep(TLS_CLOSE_S)


async def new_namespace(clients):
    name = f"test-{uuid.uuid4().hex[:8]}"
    await clients.core.create_namespace({"metadata": {"name": name}})
    return name


@pytest.fixture
async def namespace(clients):
    return await new_namespace(clients)


@contextlib.asynccontextmanager
async def kubelet_of(clients, namespace, pod_statuses):
    kubelet = FakeKubelet(clients.core, namespace, running=pod_statuses["running"])
    task = asyncio.create_task(kubelet.run())
    yield kubelet
    task.cancel()


@pytest.fixture
async def kubelet(clients, namespace, pod_statuses):
    async with kubelet_of(clients, namespace, pod_statuses) as found:
        yield found


@contextlib.contextmanager
def running(namespace):
    """The operator, from ready to stopped, in a loop of its own: kopf ends all tasks of its loop."""
    settings = Settings(
        namespaces=(namespace,),
        agent_image="agent:1",
        engine_image="engine:1",
        router_image="router:1",
        http_port=0,
    )
    stop, ready, found = threading.Event(), threading.Event(), []

    async def run():
        async with assembled(settings) as runtime:
            found.append(runtime)
            await operate(runtime, stop=stop, ready=ready)
        await asyncio.sleep(TLS_CLOSE_S)

    with ThreadPoolExecutor(max_workers=1) as pool:
        ended = pool.submit(asyncio.run, run())
        while not ready.wait(0.1):
            if ended.done():
                ended.result()
        try:
            yield found[0]
        finally:
            stop.set()
            ended.result(STOP_WITHIN_S)


@pytest.fixture(scope="session", name="running")
def running_():
    return running


@pytest.fixture
def operator(clients, namespace):
    with running(namespace) as runtime:
        yield runtime


class Resource:
    """One of the examples in a namespace of its own, and everything that came of it."""

    def __init__(self, clients, namespace, example):
        self.clients, self.namespace = clients, namespace
        self.manifest = yaml.safe_load((EXAMPLES / example).read_text())
        self.name = self.manifest["metadata"]["name"]

    async def apply(self, **spec):
        body = copy.deepcopy(self.manifest)
        body["spec"] |= spec
        await self.clients.custom.create_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, body
        )

    async def patch(self, body):
        await self.clients.custom.patch_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, self.name, body,
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    async def delete(self):
        await self.clients.custom.delete_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, self.name
        )

    async def body(self):
        return await self.clients.custom.get_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, self.name
        )

    async def status(self):
        return (await self.body()).get("status", {})

    async def condition(self, kind):
        found = (await self.status()).get("conditions", ())
        return next((item for item in found if item["type"] == kind), {})

    async def is_ready(self):
        body = await self.body()
        current = body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"]
        return current and (await self.condition("Ready")).get("status") == "True"

    async def children(self):
        """(kind, name, resourceVersion) of everything of ours."""
        core, apps = self.clients.core, self.clients.apps
        policy = client.PolicyV1Api(core.api_client)
        network = client.NetworkingV1Api(core.api_client)
        scalers = await self.clients.custom.list_namespaced_custom_object(
            *KIND, self.namespace, names.SCALER_PLURAL
        )
        lists = {
            "budget": await policy.list_namespaced_pod_disruption_budget(self.namespace),
            "policy": await network.list_namespaced_network_policy(self.namespace),
            "pod": await core.list_namespaced_pod(self.namespace),
            "service": await core.list_namespaced_service(self.namespace),
            "secret": await core.list_namespaced_secret(self.namespace),
            "deployment": await apps.list_namespaced_deployment(self.namespace),
            "replicaset": await apps.list_namespaced_replica_set(self.namespace),
        }
        return {
            (kind, item.metadata.name, item.metadata.resource_version)
            for kind, found in lists.items()
            for item in found.items
        } | {
            ("scaler", item["metadata"]["name"], item["metadata"]["resourceVersion"])
            for item in scalers["items"]
        }

    async def written(self):
        """Children that nobody but us writes once they have settled."""
        return {
            item for item in await self.children() if item[0] not in {"budget", "pod", "replicaset"}
        }

    async def events(self):
        found = await self.clients.core.list_namespaced_event(self.namespace)
        return {
            event.reason: event.message
            for event in found.items
            if event.involved_object.kind == names.KIND
        }

    async def decode_scale(self):
        """What an autoscaler reads."""
        return await self.clients.custom.get_namespaced_custom_object_scale(
            *KIND, self.namespace, names.SCALER_PLURAL, f"{self.name}-decode"
        )

    async def scale_decode(self, replicas):
        """What an autoscaler and `kubectl scale` write."""
        await self.clients.custom.patch_namespaced_custom_object_scale(
            *KIND, self.namespace, names.SCALER_PLURAL, f"{self.name}-decode",
            {"spec": {"replicas": replicas}}, _content_type="application/merge-patch+json",
        )  # fmt: skip

    async def evict(self, pod):
        """What `kubectl drain` asks of the server for each pod of a node."""
        await self.clients.core.create_namespaced_pod_eviction(
            pod, self.namespace, {"metadata": {"name": pod, "namespace": self.namespace}}
        )

    async def key_file(self, revision):
        """What a pod of the revision has mounted."""
        name = names.key_secret_name(self.name, revision=revision)
        secret = await self.clients.core.read_namespaced_secret(name, self.namespace)
        return base64.b64decode(secret.data["key"])

    async def decode_is(self, ready):
        return (await self.status()).get("decode") == ready and await self.is_ready()

    async def pods(self):
        """Of both roles."""
        found = await self.clients.core.list_namespaced_pod(
            self.namespace, label_selector=f"{names.LABEL_ROLE} in (prefill,decode)"
        )
        return found.items

    async def lose_decode(self):
        """End the decode pod at once; returns a probe for another one."""
        lost = (await self.agents())["decode"].metadata
        await self.clients.core.delete_namespaced_pod(
            lost.name, self.namespace, grace_period_seconds=0
        )

        async def replaced():
            found = (await self.agents()).get("decode")
            return found is not None and found.metadata.uid != lost.uid

        return replaced

    async def agents(self):
        return {pod.metadata.labels[names.LABEL_ROLE]: pod for pod in await self.pods()}


@pytest.fixture
def example():
    return "tiny-qwen3-next.yaml"


@pytest.fixture
def resource(clients, namespace, example):
    return Resource(clients, namespace, example)


@pytest.fixture
async def faulty(kubeconfig, tmp_path):
    async with FaultyApi(kubeconfig, folder=tmp_path / "faulty") as found:
        yield found


@pytest.fixture
async def new_resource(clients, pod_statuses, example):
    """Makes resources, each in a namespace and with a kubelet of its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def make():
            namespace = await new_namespace(clients)
            await stack.enter_async_context(kubelet_of(clients, namespace, pod_statuses))
            return Resource(clients, namespace, example)

        yield make


@pytest.fixture
async def ready(resource, kubelet, operator):
    """The example, applied and Ready."""
    await resource.apply()
    await until(resource.is_ready, what="the example is Ready")
    return resource


@pytest.fixture(scope="session")
def fake_agent():
    return FakeAgent


@pytest.fixture
async def agents_of(reported):
    """Puts a fake agent into each pod of a resource, once it runs; by role."""
    started = {}

    async def agents_of(resource):
        async def run():
            pods = await resource.agents()
            return len(pods) == 2 and all(pod.status.pod_ip for pod in pods.values()) and pods

        for role, pod in (await until(run, what="both pods run")).items():
            first = reported.report(pod.metadata.name, role=role)
            key_file = await resource.key_file(pod.metadata.labels[names.LABEL_REVISION])
            started[role] = FakeAgent(pod.metadata.name, pod.status.pod_ip, first, key_file)
            await started[role].start()
        return started

    yield agents_of
    for agent in started.values():
        await agent.stop()


@pytest.fixture
async def agents(ready, agents_of):
    return await agents_of(ready)


@pytest.fixture
async def scaled(resource, kubelet, operator):
    """The example with decode scaled from outside, Ready."""
    await resource.apply(roles={"decode": {"scaling": {"mode": "External"}}})
    await until(resource.is_ready, what="Ready")
    return resource
