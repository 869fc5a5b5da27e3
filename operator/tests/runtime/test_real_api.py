"""The whole operator against a real API server, with a fake kubelet and fake agents."""

import asyncio
import contextlib
import itertools
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import client, config

from disagg_operator import names
from disagg_operator.__main__ import assembled, operate
from disagg_operator.settings import Settings
from disagg_transfer.contract import HTTP_PORT, PATH_REPORT

pytestmark = pytest.mark.api

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny-qwen3-next.yaml"
NAME = "tiny-qwen3-next"
DECODE_SCALER = f"{NAME}-decode"
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


class FakeKubelet:
    """Makes every pod of the namespace run, each with an address of the loopback network."""

    # Other tests on this machine may use other loopback addresses at the same port.
    addresses = itertools.count(2)

    def __init__(self, core, namespace, pod_statuses):
        self.core, self.namespace, self.statuses = core, namespace, pod_statuses
        self.paused = False

    async def run(self):
        while True:
            pods = await self.core.list_namespaced_pod(self.namespace)
            for pod in pods.items:
                waits = pod.status.phase == "Pending" and not pod.metadata.deletion_timestamp
                if waits and not self.paused:
                    with contextlib.suppress(client.ApiException):
                        await self.start(pod)
            await asyncio.sleep(0.05)

    async def start(self, pod):
        number = next(self.addresses)
        spec = {
            "initContainers": [
                {"name": c.name, "image": c.image} for c in pod.spec.init_containers or ()
            ],
            "containers": [{"name": c.name, "image": c.image} for c in pod.spec.containers],
        }
        status = self.statuses["running"]({"spec": spec})
        status["podIP"] = f"127.77.{number // 250}.{number % 250 + 1}"
        status["podIPs"] = [{"ip": status["podIP"]}]
        await self.core.patch_namespaced_pod_status(
            pod.metadata.name, self.namespace, {"status": status}
        )


class FakeAgent:
    """Answers /v1/report as an agent does, by long poll; `tell` changes what it says."""

    def __init__(self, pod, ip, report):
        self.pod, self.ip, self.report = pod, ip, report
        self.changed = asyncio.Event()

    async def start(self):
        app = web.Application()
        app.add_routes([web.get(PATH_REPORT, self.answer)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, self.ip, HTTP_PORT).start()

    async def answer(self, request):
        if request.query.get("cursor") == str(self.report.cursor):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), float(request.query["wait_s"]))
        return web.Response(body=self.report.to_json())

    def tell(self, report):
        self.report = report
        self.changed.set()
        self.changed = asyncio.Event()


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


@pytest.fixture
async def namespace(clients):
    name = f"test-{uuid.uuid4().hex[:8]}"
    await clients.core.create_namespace({"metadata": {"name": name}})
    return name


@pytest.fixture
async def kubelet(clients, namespace, pod_statuses):
    kubelet = FakeKubelet(clients.core, namespace, pod_statuses)
    task = asyncio.create_task(kubelet.run())
    yield kubelet
    task.cancel()


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


@pytest.fixture
def operator(clients, namespace):
    with running(namespace) as runtime:
        yield runtime


class Resource:
    def __init__(self, clients, namespace):
        self.clients, self.namespace = clients, namespace

    async def apply(self, **spec):
        body = yaml.safe_load(EXAMPLE.read_text())
        body["spec"] |= spec
        await self.clients.custom.create_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, body
        )

    async def patch(self, body):
        await self.clients.custom.patch_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, NAME, body,
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    async def delete(self):
        await self.clients.custom.delete_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, NAME
        )

    async def body(self):
        return await self.clients.custom.get_namespaced_custom_object(
            *KIND, self.namespace, names.PLURAL, NAME
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
            *KIND, self.namespace, names.SCALER_PLURAL, DECODE_SCALER
        )

    async def scale_decode(self, replicas):
        """What an autoscaler and `kubectl scale` write."""
        await self.clients.custom.patch_namespaced_custom_object_scale(
            *KIND, self.namespace, names.SCALER_PLURAL, DECODE_SCALER,
            {"spec": {"replicas": replicas}}, _content_type="application/merge-patch+json",
        )  # fmt: skip

    async def evict(self, pod):
        """What `kubectl drain` asks of the server for each pod of a node."""
        await self.clients.core.create_namespaced_pod_eviction(
            pod, self.namespace, {"metadata": {"name": pod, "namespace": self.namespace}}
        )

    async def decode_is(self, ready):
        return (await self.status()).get("decode") == ready and await self.is_ready()

    async def agents(self):
        found = await self.clients.core.list_namespaced_pod(
            self.namespace, label_selector=f"{names.LABEL_ROLE} in (prefill,decode)"
        )
        return {pod.metadata.labels[names.LABEL_ROLE]: pod for pod in found.items}


@pytest.fixture
def resource(clients, namespace):
    return Resource(clients, namespace)


@pytest.fixture
async def ready(resource, kubelet, operator):
    """The example, applied and Ready."""
    await resource.apply()
    await until(resource.is_ready, what="the example is Ready")
    return resource


@pytest.fixture
async def agents(ready, reported):
    """A fake agent in each pod, by role."""
    started = {}
    for role, pod in (await ready.agents()).items():
        first = reported.report(pod.metadata.name, role=role)
        started[role] = FakeAgent(pod.metadata.name, pod.status.pod_ip, first)
        await started[role].start()
    yield started
    for agent in started.values():
        await agent.runner.cleanup()


async def test_applied_example_becomes_ready_with_its_children(ready):
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
    assert status["url"].startswith(f"http://{NAME}.")
    assert "RevisionServing" in await until(ready.events, what="an Event")


async def test_creation_takes_few_writes(ready, operator):
    assert operator.metrics.ready_seconds.count == 1
    writes = {k: n for k, n in operator.metrics.requests.items() if k[0] != "discover"}
    pods = sum(n for (verb, kind, _), n in writes.items() if (verb, kind) == ("create", "pods"))
    assert pods == 2
    assert sum(writes.values()) - pods <= 15, writes


async def test_pass_over_a_converged_resource_makes_no_call(ready, operator):
    async def quiet():
        before = operator.metrics.requests.total()
        await asyncio.sleep(0.3)
        return operator.metrics.requests.total() == before

    await until(quiet, what="no more calls")
    versions, requests = await ready.written(), operator.metrics.requests.total()
    passes = operator.metrics.passes.total()
    await ready.patch({"metadata": {"annotations": {"touched": "yes"}}})

    async def passed():
        return operator.metrics.passes.total() > passes

    await until(passed, what="a pass")
    assert await quiet()
    assert operator.metrics.requests.total() == requests
    assert await ready.written() == versions


async def test_status_of_a_timeout_is_there_within_a_second(ready, agents, reported):
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


async def test_new_revision_takes_over_and_the_old_one_goes(ready):
    before = await ready.status()
    await ready.patch({"spec": {"engine": {"args": ["--seed", "7"]}}})

    async def switched():
        status = await ready.status()
        return status["currentRevision"] != before["currentRevision"] and await ready.is_ready()

    await until(switched, what="the new revision serves")

    async def only_new():
        return all(before["currentRevision"] not in name for _, name, _ in await ready.children())

    await until(only_new, what="the old revision is gone", within_s=GARBAGE_DEADLINE_S)


async def test_failed_pod_is_replaced_and_told(ready, operator):
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


async def test_evictions_take_one_group_of_a_role_at_a_time(resource, kubelet, operator):
    """The second pod of a role is refused while the first is away: the server itself says so."""
    await resource.apply(roles={"prefill": {"replicas": 1}, "decode": {"replicas": 2}})
    await until(resource.is_ready, what="Ready with two decode pods")
    core = resource.clients.core

    async def one_may_go():
        budget = await client.PolicyV1Api(core.api_client).read_namespaced_pod_disruption_budget(
            f"{NAME}-decode", resource.namespace
        )
        return budget.status and budget.status.disruptions_allowed == 1

    await until(one_may_go, what="the budget lets one decode pod go")
    kubelet.paused = True
    found = await core.list_namespaced_pod(
        resource.namespace, label_selector=f"{names.LABEL_ROLE}=decode"
    )
    first, second = (pod.metadata.name for pod in found.items)
    await resource.evict(first)
    with pytest.raises(client.ApiException, match="429"):
        await resource.evict(second)
    kubelet.paused = False
    await until(resource.is_ready, what="Ready again")
    await until(one_may_go, what="the budget lets the next one go")


async def test_service_changed_by_hand_is_put_back(ready):
    await ready.clients.core.patch_namespaced_service(
        NAME, ready.namespace, {"spec": {"selector": {names.LABEL_ROLE: "nobody"}}}
    )

    async def back():
        service = await ready.clients.core.read_namespaced_service(NAME, ready.namespace)
        return service.spec.selector[names.LABEL_ROLE] == names.ROUTER

    await until(back, what="the selector is ours again")


async def test_operator_restarted_half_way_finishes(resource, kubelet, namespace):
    with running(namespace):
        await resource.apply()

        async def begun():
            return len(await resource.children()) >= 1

        await until(begun, what="first children")
    with running(namespace):
        await until(resource.is_ready, what="Ready")


async def test_resource_deleted_while_it_is_created_leaves_nothing(resource, operator):
    await resource.apply()

    async def begun():
        return len(await resource.children()) >= 1

    await until(begun, what="a first child")
    await resource.delete()

    async def nothing():
        return not await resource.children()

    await until(nothing, what="nothing is left", within_s=GARBAGE_DEADLINE_S)
    with pytest.raises(client.ApiException, match="404"):
        await resource.body()


@pytest.fixture
async def scaled(resource, kubelet, operator):
    """The example with decode scaled from outside, Ready."""
    await resource.apply(roles={"decode": {"scaling": {"mode": "External"}}})
    await until(resource.is_ready, what="Ready")
    return resource


async def test_the_scale_subresource_scales_a_role(scaled):
    await scaled.scale_decode(3)
    await until(lambda: scaled.decode_is("3/3"), what="three decode groups")

    async def told():
        return (await scaled.decode_scale())["status"].get("replicas") == 3

    await until(told, what="the scaler's status")
    selector = (await scaled.decode_scale())["status"]["selector"]
    pods = await scaled.clients.core.list_namespaced_pod(scaled.namespace, label_selector=selector)
    assert len(pods.items) == 3
    await scaled.scale_decode(1)
    await until(lambda: scaled.decode_is("1/1"), what="one decode group")


async def test_a_scaler_asked_for_nothing_refuses_by_name(scaled):
    with pytest.raises(client.ApiException, match="should be greater than or equal to 1"):
        await scaled.scale_decode(0)


async def test_a_scaled_number_outlives_edits_and_the_operator(resource, kubelet, namespace):
    with running(namespace):
        await resource.apply(roles={"decode": {"scaling": {"mode": "External"}}})
        await until(resource.is_ready, what="Ready")
        await resource.scale_decode(2)
        await until(lambda: resource.decode_is("2/2"), what="two decode groups")
    await resource.patch({"spec": {"roles": {"decode": {"replicas": 4}}}})
    with running(namespace):
        await until(lambda: resource.decode_is("2/2"), what="still two, for the new generation")
    assert (await resource.decode_scale())["spec"]["replicas"] == 2


async def test_nothing_is_left_of_a_scaled_resource(scaled):
    await scaled.delete()

    async def nothing():
        return not await scaled.children()

    await until(nothing, what="nothing is left", within_s=GARBAGE_DEADLINE_S)


async def test_a_scaler_goes_when_the_number_is_fixed_again(scaled):
    await scaled.patch({"spec": {"roles": {"decode": {"scaling": {"mode": "Static"}}}}})

    async def without():
        return "scaler" not in {kind for kind, _, _ in await scaled.children()}

    await until(without, what="no scaler")
    await until(lambda: scaled.decode_is("1/1"), what="one decode group")
