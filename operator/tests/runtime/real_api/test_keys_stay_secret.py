import asyncio
import base64
import json
import uuid

import pytest

from disagg_operator import names
from disagg_operator.__main__ import assembled
from disagg_operator.root_key import root_key
from disagg_operator.settings import Settings
from disagg_transfer.contract import report_token

pytestmark = pytest.mark.api


async def test_agents_take_the_operators_token(ready, agents, until):
    async def heard():
        status = await ready.status()
        return status.get("transfer", {}).get("reportingAgents") == len(agents)

    await until(heard, what="both agents' reports")


async def test_an_agent_with_another_key_is_told(ready, agents, until):
    agents["decode"].key_file = b"ab" * 32

    async def told():
        return (await ready.condition("TransferHealthy")).get("reason") == "ReportRefused"

    agents["decode"].tell(agents["decode"].report)
    await until(told, what="the reason ReportRefused", within_s=30)
    found = await ready.condition("TransferHealthy")
    assert agents["decode"].pod in found["message"]


async def test_no_key_and_no_token_is_in_objects_events_or_logs(ready, agents, until, caplog):
    async def heard():
        return (await ready.status()).get("transfer", {}).get("reportingAgents") == len(agents)

    await until(heard, what="both agents' reports")
    lines = agents["decode"].key_file.decode().split()
    secrets = [s for key in lines for s in (key, report_token(bytes.fromhex(key)))]
    secrets += [base64.b64encode(bytes.fromhex(key)).decode() for key in lines]
    core, apps = ready.clients.core, ready.clients.apps
    shown = [
        json.dumps(await ready.body()),
        str(await core.list_namespaced_pod(ready.namespace)),
        str(await core.list_namespaced_service(ready.namespace)),
        str(await apps.list_namespaced_deployment(ready.namespace)),
        str(await ready.events()),
        caplog.text,
    ]
    assert names.KIND in shown[0]
    assert "9464" in shown[1]
    assert not [secret for secret in secrets for text in shown if secret in text]


async def test_replicas_that_start_at_once_make_one_root(clients, namespace):
    settings = Settings(
        namespaces=(namespace,), agent_image="a", engine_image="e", router_image="r", http_port=0
    )
    name = f"root-{uuid.uuid4().hex[:8]}"
    async with assembled(settings) as one, assembled(settings) as other:
        found = await asyncio.gather(
            *(
                root_key(runtime.gateway, namespace=namespace, name=name)
                for runtime in (one, other)
                for _ in range(4)
            )
        )
    files = {root.key_file("service", generation=1) for root in found}
    assert len(files) == 1
