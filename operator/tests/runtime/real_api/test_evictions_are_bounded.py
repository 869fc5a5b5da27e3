"""Evictions leave every role something to serve with."""

import pytest
from kubernetes.aio import client

from disagg_operator import names

pytestmark = pytest.mark.api


async def test_evictions_take_one_group_of_a_role_at_a_time(resource, kubelet, operator, until):
    """The second pod of a role is refused while the first is away: the server itself says so."""
    await resource.apply(roles={"prefill": {"replicas": 1}, "decode": {"replicas": 2}})
    await until(resource.is_ready, what="Ready with two decode pods")
    core = resource.clients.core

    async def one_may_go():
        budget = await client.PolicyV1Api(core.api_client).read_namespaced_pod_disruption_budget(
            f"{resource.name}-decode", resource.namespace
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
