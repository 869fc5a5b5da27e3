"""What pods ask of their nodes: the profiles, what changes them, and where a group stands."""

import pytest
from kubernetes import client

from disagg_operator import names, render


@pytest.fixture
def made(deployment, images):
    """Pod, engine and agent of a decode pod with that hardware."""

    def made(*, nodes=1, devices=(), role="decode", group=0, rank=0, **hardware):
        spec = {"nodesPerReplica": nodes, "gpusPerNode": 8, "parallelism": {"tp": 8 * nodes}}
        found = deployment(
            hardware=hardware,
            transfer={"netDevices": devices},
            engine={"type": "custom", "image": "engine:1"},
            roles={"prefill": spec, "decode": spec},
        )
        pod = render.pod(found, role=role, group=group, rank=rank, revision="abcde", images=images)[
            "spec"
        ]
        return pod, pod["containers"][0], pod["initContainers"][0]

    return made


def env(container):
    return {item["name"]: item.get("value") for item in container["env"]}


def products(pod):
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    return expression["key"], expression["values"]


def test_h200_nodes_may_have_other_names_for_their_devices(made):
    pod, engine, agent = made(
        profile="h200",
        gpuResource="example.com/gpu",
        gpuProducts=["H200-SXM"],
        rdmaResource="example.com/hca",
        sharedMemory="64Gi",
        nodes=2,
    )
    assert engine["resources"]["limits"] == {"example.com/gpu": "8", "example.com/hca": "1"}
    assert agent["resources"]["limits"]["example.com/hca"] == "1"
    assert products(pod) == ("example.com/gpu.product", ["H200-SXM"])
    assert pod["tolerations"][0]["key"] == "example.com/gpu"
    (memory,) = (item for item in pod["volumes"] if item["name"] == "shared-memory")
    assert memory["emptyDir"]["sizeLimit"] == "64Gi"


def test_other_gpus_run_anywhere_and_without_privilege_where_there_is_no_rdma(made):
    pod, engine, agent = made(profile="custom", nodes=2)
    assert engine["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert "affinity" not in pod
    assert pod["securityContext"]["runAsNonRoot"]
    for container in (engine, agent):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any("rdma" in name for name in agent["resources"]["limits"])


def test_rdma_devices_bring_the_right_to_pin_memory(made):
    pod, _, agent = made(profile="custom", rdmaResource="rdma/hca_shared")
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert agent["resources"]["limits"]["rdma/hca_shared"] == "1"
    assert pod["securityContext"]["runAsUser"] == 0


@pytest.mark.parametrize(("profile", "policy"), [("h200", "PreferRDMA"), ("custom", "Any")])
def test_rdma_is_preferred_where_there_are_devices_for_it(made, profile, policy):
    _, _, agent = made(profile=profile)
    assert env(agent)["DISAGG_TRANSPORT_POLICY"] == policy


def test_the_pods_of_a_group_stand_near_one_another(made):
    pod, *_ = made(profile="h200", topology={"key": "rack", "policy": "Required"}, nodes=2, group=3)
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "rack"
    group = term["labelSelector"]["matchLabels"]
    assert (group[names.LABEL_ROLE], group[names.LABEL_GROUP]) == ("decode", "3")
    assert group[names.LABEL_REVISION] == "abcde"
    assert "nodeAffinity" in pod["affinity"], "beside what the profile asks"
    pod, *_ = made(profile="h200", topology={"key": "rack"}, nodes=2)
    (term,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "rack"


def test_a_pod_alone_in_its_group_stands_anywhere(made):
    pod, *_ = made(profile="h200", topology={"key": "rack", "policy": "Required"})
    assert "podAffinity" not in pod["affinity"]


def test_every_agent_gets_its_number_of_rdma_devices_and_engines_of_several_nodes_too(made):
    _, engine, agent = made(profile="h200", rdmaDevices=4)
    assert agent["resources"]["limits"]["rdma/ib"] == "4"
    assert "rdma/ib" not in engine["resources"]["limits"]
    _, engine, _ = made(profile="h200", rdmaDevices=4, nodes=2)
    assert engine["resources"]["limits"]["rdma/ib"] == "4"


def test_engine_and_agent_have_huge_pages_and_where_to_map_them(made):
    pod, engine, agent = made(profile="custom", hugepages={"size": "1Gi", "amount": "4Gi"})
    for container in (engine, agent):
        resources = container["resources"]
        assert resources["limits"]["hugepages-1Gi"] == "4Gi"
        assert resources["requests"]["hugepages-1Gi"] == "4Gi"
        assert "cpu" in resources["requests"], "else the server refuses huge pages"
        (mount,) = (item for item in container["volumeMounts"] if item["name"] == "hugepages")
        assert mount["mountPath"] == "/dev/hugepages"
    (volume,) = (item for item in pod["volumes"] if item["name"] == "hugepages")
    assert volume["emptyDir"] == {"medium": "HugePages-1Gi"}


def test_on_the_nodes_network_services_are_still_found_and_ranks_meet_where_they_can(made):
    pod, engine, _ = made(profile="h200", hostNetwork=True)
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "NCCL_SOCKET_IFNAME" not in env(engine)
    _, engine, _ = made(profile="h200", hostNetwork=True, networkInterface="bond0")
    assert env(engine)["NCCL_SOCKET_IFNAME"] == env(engine)["GLOO_SOCKET_IFNAME"] == "bond0"
    pod, engine, _ = made(profile="h200")
    assert "hostNetwork" not in pod
    assert env(engine)["NCCL_SOCKET_IFNAME"] == "eth0"


def test_capabilities_come_beside_what_rdma_needs_and_take_root(made):
    pod, engine, agent = made(profile="h200", capabilities=["SYS_RESOURCE"])
    for container in (engine, agent):
        added = container["securityContext"]["capabilities"]["add"]
        assert added == ["IPC_LOCK", "SYS_RESOURCE"]
    pod, engine, _ = made(profile="custom", capabilities=["NET_RAW"])
    assert engine["securityContext"]["capabilities"]["add"] == ["NET_RAW"]
    assert pod["securityContext"]["runAsUser"] == 0


def test_engines_use_the_rdma_devices_that_agents_use(made):
    _, engine, agent = made(profile="h200", devices=["mlx5_0:1", "mlx5_3:1", "eth0"])
    assert env(engine)["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_3:1"
    assert env(agent)["DISAGG_NET_DEVICES"] == "mlx5_0:1,mlx5_3:1,eth0"
    _, engine, _ = made(profile="h200", devices=["eth0"])
    assert "NCCL_IB_HCA" not in env(engine)


@pytest.mark.api
@pytest.mark.parametrize("profile", ["h200", "custom"])
def test_the_server_takes_pods_that_ask_for_everything(api, made, await_service_account, profile):
    pod, engine, agent = made(
        profile=profile,
        nodes=2,
        rdmaResource="rdma/hca",
        rdmaDevices=8,
        hugepages={"size": "2Mi", "amount": "4Gi"},
        hostNetwork=True,
        networkInterface="bond0",
        capabilities=["SYS_RESOURCE"],
        topology={"key": "rack"},
    )
    core = client.CoreV1Api(api)
    await_service_account(core, "default")
    answer = core.create_namespaced_pod(
        "default",
        {"metadata": {"name": "everything"}, "spec": pod},
        dry_run="All",
        field_validation="Strict",
    )
    ports = [port for c in (engine, agent) for port in c["ports"]]
    made_of = [*answer.spec.containers, *answer.spec.init_containers]
    on_host = {port.host_port for container in made_of for port in container.ports}
    assert on_host == {port["containerPort"] for port in ports}, "the scheduler keeps them apart"
