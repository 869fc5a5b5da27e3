"""What a pod would do, where there is no node: a kubelet that says it runs, an agent that reports."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio import client

from disagg_cluster.addresses import TEST_OCTETS, own_network
from disagg_transfer.contract import HTTP_PORT, PATH_REPORT, Report, report_token

# The server is being started again, or refuses a kind that it begins to serve.
AWAY: Final = (client.ApiException, aiohttp.ClientError)
_LOOK_S: Final = 0.05


def _addresses() -> Iterator[str]:
    """Of a network that no other process of this machine has, for as long as this one lives."""
    with own_network(TEST_OCTETS) as octet:
        for number in itertools.count(2):
            yield f"127.{octet}.{number // 250}.{number % 250 + 1}"


class FakeKubelet:
    """Makes every pod of the namespace run, each with an address of the loopback network.

    `running` makes the status of a pod that runs, of its manifest.
    """

    addresses = _addresses()

    def __init__(
        self,
        core: client.CoreV1Api,
        namespace: str,
        *,
        running: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.core, self.namespace, self.running = core, namespace, running
        self.paused = False

    async def run(self) -> None:
        while True:
            with contextlib.suppress(*AWAY):
                pods = await self.core.list_namespaced_pod(self.namespace)
                for pod in pods.items:
                    with contextlib.suppress(client.ApiException):
                        await self.look_after(pod)
            await asyncio.sleep(_LOOK_S)

    async def look_after(self, pod: client.V1Pod) -> None:
        waits = pod.status.phase == "Pending" and not pod.metadata.deletion_timestamp
        if waits and not self.paused:
            await self.start(pod)
        elif pod.spec.readiness_gates:
            await self.follow_gates(pod)

    async def start(self, pod: client.V1Pod) -> None:
        address = next(self.addresses)
        spec = {
            "initContainers": [
                {"name": c.name, "image": c.image} for c in pod.spec.init_containers or ()
            ],
            "containers": [{"name": c.name, "image": c.image} for c in pod.spec.containers],
        }
        gates = [{"conditionType": g.condition_type} for g in pod.spec.readiness_gates or ()]
        status = self.running({"spec": {**spec, "readinessGates": gates}})
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
        await self._tell(pod, status)

    async def follow_gates(self, pod: client.V1Pod) -> None:
        """Ready as the gates are, and scheduled, which the scheduler without a node denies once
        more after the pod was started.
        """
        told = {item.type: item.status for item in pod.status.conditions or ()}
        gates = [told.get(gate.condition_type) for gate in pod.spec.readiness_gates]
        ready = "True" if set(gates) == {"True"} else "False"
        wanted = {"Ready": ready, "PodScheduled": "True"}
        if any(told.get(kind) not in {None, status} for kind, status in wanted.items()):
            conditions = [{"type": kind, "status": status} for kind, status in wanted.items()]
            await self._tell(pod, {"conditions": conditions})

    async def _tell(self, pod: client.V1Pod, status: dict[str, Any]) -> None:
        await self.core.patch_namespaced_pod_status(
            pod.metadata.name, self.namespace, {"status": status}
        )


class FakeAgent:
    """Answers /v1/report as an agent does, by long poll; `tell` changes what it says.

    Who shows no token of a key of its `key_file` is refused, as the agent does.
    """

    def __init__(self, pod: str, ip: str, report: Report, key_file: bytes) -> None:
        self.pod, self.ip, self.report, self.key_file = pod, ip, report, key_file
        self.changed = asyncio.Event()

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get(PATH_REPORT, self.answer)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        requests = self.runner.server
        assert requests is not None  # since it is set up
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(requests, self.ip, HTTP_PORT)

    async def stop(self) -> None:
        """It accepts no more, and closes some turns later: of a server that is closed in the turn
        after it has accepted a connection, asyncio leaves that one open (Server._attach asserts).
        """
        for sock in self.server.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self.server.close()
        await self.runner.cleanup()

    async def answer(self, request: web.Request) -> web.Response:
        keys = [bytes.fromhex(line) for line in self.key_file.decode().split()]
        if request.headers.get("Authorization") not in {f"Bearer {report_token(k)}" for k in keys}:
            return web.Response(status=401)
        if request.query.get("cursor") == str(self.report.cursor):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), float(request.query["wait_s"]))
        return web.Response(body=self.report.to_json())

    def tell(self, report: Report) -> None:
        self.report = report
        self.changed.set()
        self.changed = asyncio.Event()
