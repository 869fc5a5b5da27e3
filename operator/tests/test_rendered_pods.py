"""Pods: what the manifest changes, what it cannot, and what agents and engines are told."""

import json

import pytest

from disagg_operator import names, render
from disagg_transfer import contract
from disagg_transfer import settings as agent_settings

CLAIM = {"name": "gpus", "resourceClaimTemplateName": "eight-gpus"}
H200 = {
    "hardware": {"profile": "h200"},
    "engine": {"type": "sglang", "image": "sglang:1"},
}


@pytest.fixture
def pod(deployment, images):
    def make(*, role="decode", group=0, rank=0, **spec):
        return render.pod(
            deployment(**spec), role=role, group=group, rank=rank, revision="abcde", images=images
        )

    return make


def engine(pod):
    return next(c for c in pod["spec"]["containers"] if c["name"] == names.CONTAINER_ENGINE)


def agent(pod):
    return next(c for c in pod["spec"]["initContainers"] if c["name"] == names.CONTAINER_AGENT)


def env(container):
    return {item["name"]: item.get("value") for item in container["env"]}


def on_roles(**role):
    return {"roles": {"prefill": role, "decode": role}}


def test_the_agent_is_a_sidecar_that_starts_before_the_engine(pod):
    made = pod()
    assert made["spec"]["initContainers"][0]["name"] == names.CONTAINER_AGENT
    assert agent(made)["restartPolicy"] == "Always"
    assert agent(made)["startupProbe"]["httpGet"] == {"path": "/startupz", "port": 9464}


def test_a_pod_is_found_by_name_before_it_is_ready(pod):
    made = pod(role="prefill", group=3)
    assert made["metadata"]["name"] == made["spec"]["hostname"] == "tiny-prefill-abcde-3-0"
    assert made["spec"]["subdomain"] == "tiny-prefill-abcde"
    assert made["metadata"]["labels"][names.LABEL_GROUP] == "3"


def test_the_resource_owns_its_pods(pod):
    (owner,) = pod()["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("DisaggDeployment", "tiny")
    assert owner["controller"]
    assert not owner["blockOwnerDeletion"]


def test_the_longest_names_are_still_hostnames(pod):
    made = pod(name="a" * names.NAME_LIMIT, role="prefill", group=9999, rank=63)
    assert len(made["metadata"]["name"]) <= 63
    assert len(made["spec"]["subdomain"]) <= 63


def test_agents_are_told_types_by_registry_name_and_deadlines_in_seconds(pod):
    made = pod(
        model={"stateTypes": ["kv", "dsa"]},
        transfer={
            "timeouts": {
                "default": "1m",
                "stages": {"queue": "500ms"},
                "stateTypes": {"dsa": "3s"},
            },
            "integrity": "Off",
            "faultSwitch": "Enabled",
        },
    )
    told = env(agent(made))
    assert told[contract.ENV_STATE_TYPES] == "kv,nsa"
    assert json.loads(told[contract.ENV_TIMEOUTS]) == {
        "default": 60.0,
        "stages": {"queue": 0.5},
        "stateTypes": {"nsa": 3.0},
    }
    assert told[contract.ENV_INTEGRITY] == "off"
    assert told[contract.ENV_FAULT_SWITCH] == "enabled"


def test_agents_are_told_how_to_move_state(pod):
    told = env(
        agent(
            pod(
                transfer={
                    "transport": "TCP",
                    "netDevices": ["eth0", "mlx5_0:1"],
                    "dataPorts": "22000-22099",
                    "preflight": {"mode": "Required", "canaryInterval": "90s"},
                    "credits": {"bytes": "1Gi", "reads": 8, "arenaPercent": 25},
                    "integrity": "Sampled",
                    "sampledPercent": 5,
                    "timeouts": {"heartbeat": "1500ms"},
                    "quarantine": {"percent": 25, "lastingPercent": 5, "lastingTime": "1m"},
                }
            )
        )
    )
    assert told[contract.ENV_TRANSPORT] == "tcp"
    assert told[contract.ENV_TRANSPORT_POLICY] == "Any"
    assert told[contract.ENV_NET_DEVICES] == "eth0,mlx5_0:1"
    assert told[contract.ENV_DATA_PORTS] == "22000-22099"
    assert told[contract.ENV_PREFLIGHT] == "required"
    assert told[contract.ENV_CANARY] == "90"
    assert json.loads(told[contract.ENV_CREDITS]) == {"bytes": 1 << 30, "reads": 8, "share": 0.25}
    assert (told[contract.ENV_INTEGRITY], told[contract.ENV_INTEGRITY_RATE]) == ("sampled", "0.05")
    assert json.loads(told[contract.ENV_HEARTBEAT]) == {"limitSeconds": 1.5}
    assert json.loads(told[contract.ENV_QUARANTINE]) == {
        "share": 0.25,
        "lastingShare": 0.05,
        "lastingSeconds": 60.0,
    }


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({}, "Any"),
        (H200, "PreferRDMA"),
        ({"transfer": {"transport": "RequireRDMA"}}, "RequireRDMA"),
        ({**H200, "transfer": {"transport": "Any"}}, "Any"),
    ],
)
def test_rdma_is_preferred_where_there_is_some(pod, spec, policy):
    told = env(agent(pod(**spec, **(on_roles(gpusPerNode=1) if "hardware" in spec else {}))))
    assert (told[contract.ENV_TRANSPORT], told[contract.ENV_TRANSPORT_POLICY]) == ("any", policy)


def test_a_prefill_queue_has_a_longer_deadline_of_its_own(pod):
    timeouts = json.loads(env(agent(pod()))[contract.ENV_TIMEOUTS])
    assert timeouts == {"default": 30.0, "stages": {"queue": 120.0}, "stateTypes": {}}


def test_only_decode_looks_for_peers(pod):
    service = "tiny-prefill-abcde.default.svc"
    assert env(agent(pod(role="decode")))[contract.ENV_PEER_SERVICE] == service
    assert contract.ENV_PEER_SERVICE not in env(agent(pod(role="prefill")))


EXTREMES = {
    "netDevices": ["mlx5_0:1"],
    "dataPorts": "1024-1039",
    "timeouts": {"heartbeat": "300ms"},
    "integrity": "Sampled",
    "sampledPercent": 99,
    "quarantine": {"percent": 1, "lastingPercent": 100, "lastingTime": "24h"},
    "credits": {"bytes": "1Mi", "reads": 4096, "arenaPercent": 100},
    "preflight": {"canaryInterval": "1s"},
}


@pytest.mark.parametrize("transfer", [{}, EXTREMES], ids=["plain", "extremes"])
@pytest.mark.parametrize("role", names.ROLES)
def test_the_agent_takes_the_environment_that_it_is_given(pod, role, transfer, tmp_path):
    told = env(agent(pod(role=role, transfer=transfer)))
    given = {name: "10.0.0.1" if value is None else value for name, value in told.items()}
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    settings = agent_settings.from_environment({**given, contract.ENV_KEY_FILE: str(key)})
    assert (settings.role, settings.deployment, settings.revision) == (role, "tiny", "abcde")
    assert settings.fault_switch is contract.FaultSwitch.DISABLED


def test_the_key_is_mounted_in_the_agent_and_nowhere_else(pod):
    made = pod()
    assert "/etc/disagg/key" in [mount["mountPath"] for mount in agent(made)["volumeMounts"]]
    assert "/etc/disagg/key" not in [mount["mountPath"] for mount in engine(made)["volumeMounts"]]


def test_the_agents_memory_holds_its_arena(pod):
    resources = agent(pod(transfer={"arena": {"bytes": "1Gi"}}))["resources"]
    assert resources["requests"]["memory"] == "1024Mi"
    assert resources["limits"]["memory"] == "1536Mi"


def test_an_arena_on_the_gpu_takes_a_claim_that_engine_and_agent_share(pod):
    role = {
        "gpusPerNode": 8,
        "parallelism": {"tp": 8},
        "template": {"spec": {"resourceClaims": [CLAIM]}},
    }
    arena = {"memory": "Device", "gpuClaim": "gpus", "bytes": "2Gi"}
    made = pod(**H200, **on_roles(**role), transfer={"arena": arena})
    assert made["spec"]["resourceClaims"] == [CLAIM]
    for container in (engine(made), agent(made)):
        assert container["resources"]["claims"] == [{"name": "gpus"}]
        assert "nvidia.com/gpu" not in container["resources"].get("limits", {})
    assert env(agent(made))[contract.ENV_ARENA_MEMORY] == "device"
    assert agent(made)["resources"]["limits"]["memory"] == "512Mi"  # none for the arena
    plain = pod(**H200, **on_roles(gpusPerNode=8, parallelism={"tp": 8}))
    assert engine(plain)["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert env(agent(plain))[contract.ENV_ARENA_MEMORY] == "host"
    assert "claims" not in engine(plain)["resources"]


def test_the_reference_engine_gets_its_command_and_the_manifests_arguments_last(pod):
    container = engine(pod(engine={"args": ["--a"]}, **on_roles(args=["--b"])))
    assert container["image"] == "engine:1"
    assert container["command"] == ["disagg-engine"]
    assert container["args"][:2] == ["--role", "decode"]
    assert container["args"][-2:] == ["--a", "--b"]


def test_a_custom_engine_keeps_the_command_of_its_image(pod):
    container = engine(pod(engine={"type": "custom", "image": "mine:1"}))
    assert container["image"] == "mine:1"
    assert "command" not in container
    assert "args" not in container


def test_ranks_of_a_group_meet_at_the_first(pod):
    parallelism = {"tp": 16, "dp": 8, "ep": 16}
    role = {"nodesPerReplica": 2, "gpusPerNode": 8, "parallelism": parallelism}
    args = engine(pod(group=1, rank=1, **H200, **on_roles(**role)))["args"]
    text = " ".join(args)
    assert "--nnodes 2 --node-rank 1" in text
    assert "--dist-init-addr tiny-decode-abcde-1-0.tiny-decode-abcde.default.svc:20000" in text
    assert "--tp-size 16 --dp-size 8 --enable-dp-attention --ep-size 16" in text


def test_h200_pods_ask_for_devices_and_nodes_that_have_them(pod):
    made = pod(**H200, **on_roles(gpusPerNode=8, parallelism={"tp": 8}))
    assert engine(made)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert agent(made)["resources"]["limits"]["rdma/ib"] == "1"
    assert agent(made)["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    affinity = json.dumps(made["spec"]["affinity"])
    assert "nvidia.com/gpu.product" in affinity
    assert "NVIDIA-H200" in affinity
    assert env(agent(made))[contract.ENV_ARENA_BYTES] == str(4 << 30)


def test_an_overlay_changes_the_engine_and_adds_beside_it(pod):
    overlay = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "nodeSelector": {"disk": "fast"},
            "containers": [
                {"name": "engine", "volumeMounts": [{"name": "m", "mountPath": "/m"}]},
                {"name": "mine", "image": "mine:1"},
            ],
            "volumes": [{"name": "m", "emptyDir": {}}],
        },
    }
    made = pod(**on_roles(template=overlay))
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["annotations"] == {"note": "b"}
    assert made["spec"]["nodeSelector"] == {"disk": "fast"}
    assert [c["name"] for c in made["spec"]["containers"]] == ["engine", "mine"]
    assert {"/m", "/tmp", "/run/disagg"} <= {m["mountPath"] for m in engine(made)["volumeMounts"]}


def test_an_overlay_cannot_take_what_the_operator_owns(pod):
    overlay = {
        "metadata": {"labels": {names.LABEL_DEPLOYMENT: "other"}},
        "spec": {
            "hostname": "other",
            "subdomain": "other",
            "restartPolicy": "Never",
            "volumes": [{"name": "disagg-key", "secret": {"secretName": "other"}}],
            "containers": [
                {"name": "engine", "env": [{"name": contract.ENV_SOCKET, "value": "/other"}]}
            ],
        },
    }
    made = pod(**on_roles(template=overlay))
    assert made["metadata"]["labels"][names.LABEL_DEPLOYMENT] == "tiny"
    assert made["spec"]["hostname"] == "tiny-decode-abcde-0-0"
    assert made["spec"]["restartPolicy"] == "Always"
    volumes = {volume["name"]: volume for volume in made["spec"]["volumes"]}
    assert volumes["disagg-key"]["secret"]["secretName"] == "tiny-abcde-key"
    assert env(engine(made))[contract.ENV_SOCKET] == contract.SOCKET_PATH


def test_a_profiles_tolerations_stay_when_the_manifest_adds_one(pod):
    overlay = {"spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}}
    role = {"gpusPerNode": 8, "parallelism": {"tp": 8}, "template": overlay}
    tolerations = pod(**H200, **on_roles(**role))["spec"]["tolerations"]
    assert [item["key"] for item in tolerations] == ["nvidia.com/gpu", "team"]


@pytest.mark.parametrize(
    "given",
    [{"limits": {"memory": "256Mi"}}, {"requests": {"memory": "8Gi"}}],
    ids=["a low limit", "a high request"],
)
def test_a_default_never_stands_against_the_manifests_resources(pod, given):
    found = engine(pod(**on_roles(resources=given)))["resources"]
    memory = {kind: values["memory"] for kind, values in found.items() if "memory" in values}
    assert memory == {kind: values["memory"] for kind, values in given.items()}


def test_the_roles_environment_wins_over_the_engines(pod):
    value = {"name": "A", "value": "role"}
    made = pod(
        engine={"env": [{"name": "A", "value": "engine"}, {"name": "B", "value": "b"}]},
        **on_roles(env=[value]),
    )
    assert env(engine(made))["A"] == "role"
    assert env(engine(made))["B"] == "b"


def test_defaults_filled_in_by_the_server_change_no_pod(pod, deployment):
    filled = deployment().spec.model_dump(by_alias=True, mode="json", exclude_none=True)
    del filled["model"]
    assert pod(**filled) == pod()
