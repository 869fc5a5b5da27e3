"""A deployment of groups of 2 nodes x 8 GPUs becomes pods on H200 nodes."""

import pytest

from disagg_operator import names

pytestmark = pytest.mark.api


async def test_a_group_is_a_pod_on_each_of_two_nodes_with_all_their_gpus(ready, groups, nodes):
    found = await groups()
    assert set(found) == {("prefill", 0), ("prefill", 1), ("decode", 0)}
    pods = [pod for group in found.values() for pod in group.pods.values()]
    assert len({pod.spec.node_name for pod in pods}) == len(pods) == 6
    assert {pod.spec.node_name for pod in pods} <= set(nodes.names)
    for pod in pods:
        engine = next(one for one in pod.spec.containers if one.name == names.CONTAINER_ENGINE)
        assert engine.resources.limits["nvidia.com/gpu"] == "8"
    status = await ready.status()
    assert (status["prefill"], status["decode"]) == ("2/2", "1/1")
    assert status["router"] == {"desired": 2, "ready": 2}


async def test_the_pods_of_a_group_meet_at_the_name_of_rank_0(ready, groups):
    for group in (await groups()).values():
        assert sorted(group.pods) == [0, 1]
        leader = group.pods[0]
        for rank, pod in group.pods.items():
            assert pod.spec.hostname == pod.metadata.name
            assert pod.spec.subdomain == leader.spec.subdomain
            args = pod.spec.containers[0].args
            assert args[args.index("--nnodes") + 1] == "2"
            assert args[args.index("--node-rank") + 1] == str(rank)
            host = f"{leader.metadata.name}.{leader.spec.subdomain}.{ready.namespace}.svc"
            assert args[args.index("--dist-init-addr") + 1].startswith(f"{host}:")
        # What DNS answers with needs a headless Service of that name that leads to the pods.
        service = await ready.clients.core.read_namespaced_service(
            leader.spec.subdomain, ready.namespace
        )
        assert service.spec.cluster_ip == "None"
        assert service.spec.publish_not_ready_addresses
        assert service.spec.selector.items() <= leader.metadata.labels.items()


async def test_a_pod_without_an_h200_node_is_waited_for_by_name(resource, nodes, operator, until):
    await nodes.add(5)
    await nodes.add(3, product="NVIDIA-H100-80GB-HBM3")
    await resource.apply()

    async def left_over():
        pods = await resource.pods()
        waiting = [pod.metadata.name for pod in pods if not pod.spec.node_name]
        return waiting if (len(pods), len(waiting)) == (6, 1) else None

    (waiting,) = await until(left_over, what="five of six pods have a node")

    async def told():
        status = await resource.status()
        return status if f"pod {waiting} has no node" in status.get("message", "") else None

    status = await until(told, what="the status names the one that waits")
    assert status["reason"] == names.REASON_UNSCHEDULABLE
    assert "Insufficient nvidia.com/gpu" in status["message"]
    assert await left_over() == [waiting]
    await nodes.add(1)
    await until(resource.is_ready, what="Ready with a sixth H200 node")


async def test_ready_waits_for_what_the_agents_say(resource, nodes, agents, operator, until):
    """The example requires RDMA, so an agent without it is the root cause of all."""
    agents.tell(transport="tcp", transport_reason="no RDMA device in this pod")
    await nodes.add(6)
    await resource.apply()

    async def refused():
        status = await resource.status()
        return status if status.get("transfer", {}).get("reportingAgents") == 6 else None

    status = await until(refused, what="six agents report")
    assert status["reason"] == names.REASON_NO_RDMA
    assert "no RDMA device in this pod" in status["message"]
    agents.tell(transport="rdma", transport_reason="")
    await until(resource.is_ready, what="Ready once all agents use RDMA")
    assert (await resource.status())["transport"] == "rdma"
