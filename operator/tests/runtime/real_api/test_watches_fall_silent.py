"""Watches whose other end is gone without a word, and ones that cannot be healed."""

import asyncio
import os

import pytest
from kubernetes.aio import client

from disagg_fleet import OperatorProcess
from disagg_operator import gateway

pytestmark = pytest.mark.api

# The product's own times with DISAGG_FULL_TIMES=1, else a tenth of them.
SCALE = 1 if os.environ.get("DISAGG_FULL_TIMES") else 10
INACTIVITY_S = gateway.SILENT_S / SCALE
BUSY_S = 75.0


@pytest.fixture
async def operator(faulty, clients, namespace, running, monkeypatch):
    """In this process, behind the proxy; its start and end are waited for in a thread, since the
    proxy lives in this one.
    """
    monkeypatch.setattr(gateway, "WATCH_S", gateway.WATCH_S // SCALE)
    monkeypatch.setattr(gateway, "SILENT_S", INACTIVITY_S)
    monkeypatch.setenv("KUBECONFIG", str(faulty.kubeconfig))
    context = running(namespace)
    yield await asyncio.to_thread(context.__enter__)
    await asyncio.to_thread(context.__exit__, None, None, None)


async def test_a_silent_watch_is_resumed_and_misses_nothing(ready, faulty, until):
    faulty.silence_watches()
    replaced = await ready.lose_decode()
    await until(replaced, what="another decode pod", within_s=INACTIVITY_S + BUSY_S)


async def test_a_resource_deleted_unseen_gives_its_name_to_the_next(ready, faulty, operator, until):
    """kopf lists anew after 410, and never tells of one whose finalizer was taken off by hand."""
    faulty.silence_watches()
    await ready.patch({"metadata": {"finalizers": None}})
    await ready.delete()
    await ready.apply()
    faulty.cut_watches(gone=True)

    async def alone():
        return len(operator.wakeups) == 1 and await ready.is_ready()

    await until(
        alone, what="the next one is Ready, and the first one's loop ended", within_s=BUSY_S
    )


async def test_the_lease_is_given_back_when_kopf_fails(clients, faulty, namespace, until, tmp_path):
    leases = client.CoordinationV1Api(clients.core.api_client)
    lease = f"{namespace}/disagg"

    async def holder():
        try:
            found = await leases.read_namespaced_lease("disagg", namespace)
        except client.ApiException:
            return ""
        return found.spec.holder_identity

    log = tmp_path / "operator.log"
    with OperatorProcess(faulty.kubeconfig, namespace=namespace, log=log, lease=lease):
        await until(holder, what="it leads", within_s=BUSY_S)

        async def given_back():
            faulty.cut_watches(gone=True, code=500)  # ours go on; kopf's may not be there yet
            return not await holder()

        await until(given_back, what="the Lease is nobody's", within_s=BUSY_S)
