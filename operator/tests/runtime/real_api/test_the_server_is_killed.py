"""A server that dies and comes back finds the operator at work."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from kubernetes import config as sync_config
from kubernetes.aio import client

from disagg_cluster import control_plane
from disagg_cluster.processes import records
from disagg_fleet import OperatorProcess, install_crds
from disagg_operator import names

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

# With a resync of 300 s in between nothing but watches and retries can be what heals.
CONVERGE_S = 90.0


class OwnServer:
    """A control plane that nobody else uses, so that its API server may be killed."""

    def __init__(self, kubeconfig, host):
        self.kubeconfig, self._address = kubeconfig, urlsplit(host)
        found = {record.name: record.pid for record in records(kubeconfig.parent.parent / "run")}
        self._pid = found["kube-apiserver"]
        self._command = Path(f"/proc/{self._pid}/cmdline").read_bytes().split(b"\0")[:-1]
        self._again = None

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)

    async def has_left_its_port(self):
        """Its threads end one after another; a server started before the last one cannot listen."""
        with contextlib.suppress(OSError):
            socket.create_server((self._address.hostname, self._address.port)).close()
            return True

    def start(self):
        self._again = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def end(self):
        if self._again is not None:
            self._again.kill()
            self._again.wait()


@pytest.fixture
def own_server():
    with control_plane() as kubeconfig:
        with sync_config.new_client_from_config(str(kubeconfig)) as api:
            install_crds(api)
            server = OwnServer(kubeconfig, api.configuration.host)
        yield server
        server.end()


@pytest.fixture
def kubeconfig(own_server):
    return own_server.kubeconfig


async def test_a_server_that_is_killed_and_comes_back_finds_the_work_going_on(
    own_server, resource, kubelet, until, tmp_path
):
    async def answered(ask):
        """Nothing while the server is away, or says 429 as it begins to serve a kind."""
        with contextlib.suppress(client.ApiException, aiohttp.ClientError):
            return await ask()

    async def under_way():
        return any(kind == "service" for kind, *_ in await resource.children())

    log = tmp_path / "operator.log"
    with OperatorProcess(own_server.kubeconfig, namespace=resource.namespace, log=log):
        await resource.apply()
        await until(under_way, what="the first objects")
        own_server.kill()
        await until(own_server.has_left_its_port, what="the server has ended")
        own_server.start()
        await until(lambda: answered(resource.is_ready), what="Ready", within_s=CONVERGE_S)
        replaced = await resource.lose_decode()
        await until(replaced, what="another decode pod", within_s=CONVERGE_S)
        roles = [pod.metadata.labels[names.LABEL_ROLE] for pod in await resource.pods()]
        assert sorted(roles) == ["decode", "prefill"]
