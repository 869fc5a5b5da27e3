"""The real API server against a table of manifests: what it refuses, and with which words."""

import re
from pathlib import Path

import pytest
import yaml

from disagg_transfer import contract

pytestmark = pytest.mark.api

DOCS = Path(__file__).parents[2] / "docs"
(ARENA,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "arena.md").read_text(), re.DOTALL)
H200_ROLE = {"gpusPerNode": 8, "parallelism": {"tp": 8}}
H200_ROLES = {"prefill": H200_ROLE, "decode": H200_ROLE}
H200 = {"hardware": {"profile": "h200"}, "engine": {"type": "sglang", "image": "x"}}


ALLOWED = {
    "only a model": {},
    "every state type": {"model": {"stateTypes": ["kv", "mamba", "swa", "nsa"]}},
    "a state type of one's own": {"model": {"stateTypes": ["kv", "example.com/ring"]}},
    "the newer name of nsa": {"model": {"stateTypes": ["kv", "dsa"]}},
    "both roles at zero": {"roles": {"prefill": {"replicas": 0}, "decode": {"replicas": 0}}},
    "full nodes of GPUs": {**H200, "roles": H200_ROLES},
    "two nodes in a group": {
        **H200,
        "roles": {
            "prefill": {"gpusPerNode": 8, "nodesPerReplica": 2, "parallelism": {"tp": 8, "pp": 2}},
            "decode": {"gpusPerNode": 8, "nodesPerReplica": 2, "parallelism": {"tp": 16, "dp": 8}},
        },
    },
    "a flag that begins like an owned one": {"engine": {"args": ["--model-cache=x", "--seed=3"]}},
    "owned flags of another engine": {
        "engine": {"type": "custom", "image": "x", "args": ["--role", "--nnodes=2"]}
    },
    "a sidecar and a changed engine": {
        "roles": {
            "prefill": {
                "template": {
                    "metadata": {"labels": {"team": "a"}},
                    "spec": {
                        "nodeSelector": {"a": "b"},
                        "containers": [{"name": "engine", "stdin": True}, {"name": "mine"}],
                    },
                }
            }
        }
    },
    "a deadline for each state type": {
        "model": {"stateTypes": ["kv", "mamba"]},
        "transfer": {
            "timeouts": {
                "default": "1m30s",
                "stages": {"queue": "500ms"},
                "stateTypes": {"kv": "1.5s", "mamba": "24h"},
            }
        },
    },
    "an arena on GPUs that engine and agent share": yaml.safe_load(ARENA)["spec"],
    "an arena as a number": {"transfer": {"arena": {"bytes": 67108864}}},
    "bounds of a rollout": {"rollout": {"maxSurge": "25%", "maxUnavailable": 1}},
    "how state moves": {
        "transfer": {
            "transport": "RequireRDMA",
            "netDevices": ["mlx5_0:1", "eth0"],
            "dataPorts": "1024-1039",
            "preflight": {"mode": "Required"},
            "integrity": "Sampled",
            "sampledPercent": 1,
            "timeouts": {"heartbeat": "300ms"},
            "quarantine": {"percent": 1, "lastingPercent": 100, "lastingTime": "1s"},
        }
    },
    "an arena as a quantity": {"transfer": {"arena": {"bytes": "4Gi"}}},
}

REFUSED = {
    "a queue without Volcano": (
        {"scheduling": {"queue": "team-a"}},
        ["scheduling.queue team-a", "scheduling.gang", "not None"],
    ),
    "a gang of another scheduler": (
        {"scheduling": {"gang": "Native"}},
        ["spec.scheduling.gang", "Native", "Volcano"],
    ),
    "an unknown state type": (
        {"model": {"stateTypes": ["kv", "lstm"]}},
        ["spec.model.stateTypes[1]", "lstm", "kv, mamba", "swa_ring, dsa; ", "vendor/name"],
    ),
    "a state type of one's own without its vendor": (
        {"model": {"stateTypes": ["kv", "/ring"]}},
        ["spec.model.stateTypes[1]", "/ring", "example.com/ring"],
    ),
    "no surge": ({"rollout": {"maxSurge": 0}}, ["spec.rollout.maxSurge", "from 1", "25%"]),
    "no surge in percent": ({"rollout": {"maxSurge": "0%"}}, ["spec.rollout.maxSurge", "0%"]),
    "a bound that is no number": (
        {"rollout": {"maxUnavailable": "some"}},
        ["spec.rollout.maxUnavailable", "some", "from 0"],
    ),
    "no kv": ({"model": {"stateTypes": ["mamba"]}}, ["spec.model.stateTypes", "mamba", "add kv"]),
    "one type by both names": (
        {"model": {"stateTypes": ["kv", "nsa", "dsa"]}},
        ["stateTypes", "nsa and dsa", "keep nsa"],
    ),
    "one state type twice": ({"model": {"stateTypes": ["kv", "kv"]}}, ["stateTypes[1]", "kv"]),
    "one role at zero": (
        {"roles": {"prefill": {"replicas": 0}}},
        ["roles.prefill.replicas 0", "roles.decode.replicas 1", "both 0"],
    ),
    "a negative replica count": (
        {"roles": {"prefill": {"replicas": -1}}},
        ["spec.roles.prefill.replicas", "-1", "greater than or equal to 0"],
    ),
    "GPUs without GPU nodes": (
        {"roles": {"decode": {"gpusPerNode": 8}}},
        ["roles.decode", "gpusPerNode 8", "must be 0"],
    ),
    "parallelism without GPUs": (
        {"roles": {"prefill": {"parallelism": {"tp": 2}}}},
        ["roles.prefill", "parallelism.tp 2", "must be 1"],
    ),
    "fewer ranks than GPUs": (
        {
            **H200,
            "roles": {"prefill": {**H200_ROLE, "parallelism": {"tp": 3}}, "decode": H200_ROLE},
        },
        ["roles.prefill.parallelism", "tp 3", "gpusPerNode 8", "nodesPerReplica 1"],
    ),
    "experts that do not divide": (
        {
            **H200,
            "roles": {
                "prefill": H200_ROLE,
                "decode": {"gpusPerNode": 8, "parallelism": {"tp": 8, "ep": 3}},
            },
        },
        ["roles.decode.parallelism", "ep 3", "divide tp 8"],
    ),
    "a reference engine over two nodes": (
        {"roles": {"decode": {"nodesPerReplica": 2}}},
        ["roles.decode.nodesPerReplica 2", "must be 1", "reference"],
    ),
    "an engine without an image": (
        {"engine": {"type": "sglang"}},
        ["engine.image is missing", "sglang"],
    ),
    "an unknown engine": (
        {"engine": {"type": "vllm"}},
        ["spec.engine.type", "vllm", '"reference", "sglang", "custom"'],
    ),
    "scaling from outside that begins with nothing": (
        {
            "roles": {
                "prefill": {"replicas": 0, "scaling": {"mode": "External"}},
                "decode": {"replicas": 0},
            }
        },
        ["roles.prefill.replicas 0", "at least 1", "scaling.mode External", "Static"],
    ),
    "canaries without a pause": (
        {"transfer": {"preflight": {"canaryInterval": "100ms"}}},
        ["transfer.preflight.canaryInterval 100ms", "at least 1s"],
    ),
    "a canary once in three weeks": (
        {"transfer": {"preflight": {"canaryInterval": "500h"}}},
        ["canaryInterval", "duration 500h must be above 0s and at most 24h"],
    ),
    "a heartbeat that is no duration": (
        {"transfer": {"timeouts": {"heartbeat": "quick"}}},
        ["heartbeat", "duration quick must be above 0s and at most 24h"],
    ),
    "a credit of nothing": (
        {"transfer": {"credits": {"reads": 0}}},
        ["spec.transfer.credits.reads", "greater than or equal to 1"],
    ),
    "a credit less than a chunk": (
        {"transfer": {"credits": {"bytes": "4Ki"}}},
        ["4Ki", "1Mi to 16Ti"],
    ),
    "an owned flag": ({"engine": {"args": ["--role", "x"]}}, ["engine.args", "--role", "remove"]),
    "an owned flag with its value": (
        {"roles": {"prefill": {"args": ["--model=3"]}}},
        ["roles.prefill.args", "--model=3", "remove"],
    ),
    "an owned flag of SGLang": (
        {**H200, "roles": {"prefill": H200_ROLE, "decode": {**H200_ROLE, "args": ["--tp-size=4"]}}},
        ["roles.decode.args", "--tp-size=4", "remove"],
    ),
    "the meeting point of ranks by its older name": (
        {**H200, "engine": {**H200["engine"], "args": ["--nccl-init-addr", "a:1"]}},
        ["engine.args", "--nccl-init-addr", "remove"],
    ),
    "attention of data parallel ranks beside parallelism.dp": (
        {**H200, "engine": {**H200["engine"], "args": ["--enable-dp-attention"]}},
        ["engine.args", "--enable-dp-attention", "remove"],
    ),
    "an owned flag of SGLang for both roles": (
        {**H200, "engine": {**H200["engine"], "args": ["--nnodes"]}, "roles": H200_ROLES},
        ["engine.args", "--nnodes", "remove"],
    ),
    "an owned flag of the router": (
        {"router": {"args": ["--host=1"]}},
        ["router.args", "--host=1", "remove"],
    ),
    "the agent's port": (
        {"engine": {"port": 8998}},
        ["spec.engine.port", "8998", "any but 8998 and 9464"],
    ),
    "a reserved variable": (
        {"roles": {"decode": {"env": [{"name": "DISAGG_ROLE", "value": "x"}]}}},
        ["spec.roles.decode.env", "DISAGG_ROLE", "another name"],
    ),
    "a reserved variable for both roles": (
        {"engine": {"env": [{"name": "DISAGG_ROLE", "value": "x"}]}},
        ["spec.engine.env", "DISAGG_ROLE", "another name"],
    ),
    "a variable given twice": (
        {"engine": {"env": [{"name": "A"}, {"name": "A"}]}},
        ["spec.engine.env[1]", "Duplicate", "A"],
    ),
    "the agent's container": (
        {
            "roles": {
                "prefill": {"template": {"spec": {"containers": [{"name": "transfer-agent"}]}}}
            }
        },
        ["prefill.template.spec.containers", "transfer-agent", "agent.resources"],
    ),
    "the engine as an init container": (
        {"roles": {"decode": {"template": {"spec": {"initContainers": [{"name": "engine"}]}}}}},
        ["decode.template.spec.initContainers", "engine", "reserved"],
    ),
    "no time at all": (
        {"transfer": {"timeouts": {"default": "0s"}}},
        ["spec.transfer.timeouts.default", "0s", "above 0s and at most 24h"],
    ),
    "a time without a unit": (
        {"transfer": {"timeouts": {"stateTypes": {"kv": "5"}}}},
        ["spec.transfer.timeouts.stateTypes", "5", "such as 500ms"],
    ),
    "a time too long": (
        {"transfer": {"timeouts": {"stages": {"wire": "25h"}}}},
        ["spec.transfer.timeouts.stages.wire", "25h", "at most 24h"],
    ),
    **{
        f"a stage without time: {stage}": (
            {"transfer": {"timeouts": {"stages": {stage: "0s"}}}},
            [f"spec.transfer.timeouts.stages.{stage}", "0s", "above 0s"],
        )
        for stage in contract.Stage
    },
    "a stage that there is not": (
        {"transfer": {"timeouts": {"stages": {"teleport": "1s"}}}},
        ["spec.transfer.timeouts.stages.teleport", "unknown field"],
    ),
    "a deadline for a type that the model lacks": (
        {"transfer": {"timeouts": {"stateTypes": {"mamba": "3s"}}}},
        ["transfer.timeouts.stateTypes", "mamba", 'model.stateTypes ["kv"]'],
    ),
    "an arena on a GPU that nobody gives the agent": (
        {**H200, "roles": H200_ROLES, "transfer": {"arena": {"memory": "Device"}}},
        ["transfer.arena: ", "memory Device without gpuClaim", "name the claim"],
    ),
    "a claim of GPUs for an arena in main memory": (
        {**H200, "roles": H200_ROLES, "transfer": {"arena": {"gpuClaim": "gpus"}}},
        ["transfer.arena: ", "memory Host with gpuClaim", "leave it out"],
    ),
    "an arena on a GPU where there is none": (
        {"transfer": {"arena": {"memory": "Device", "gpuClaim": "gpus"}}},
        ["transfer.arena.memory Device", "hardware.profile is cpu", "h200"],
    ),
    "an arena that is no quantity": (
        {"transfer": {"arena": {"bytes": "12Q"}}},
        ["spec.transfer.arena.bytes", "12Q", "from 1Mi to 16Ti"],
    ),
    "an arena too small to hold anything": (
        {"transfer": {"arena": {"bytes": 4096}}},
        ["spec.transfer.arena.bytes", "4096", "from 1Mi to 16Ti"],
    ),
    "an arena larger than any machine": (
        {"transfer": {"arena": {"bytes": "17Ti"}}},
        ["spec.transfer.arena.bytes", "17Ti", "from 1Mi to 16Ti"],
    ),
    "a transport that there is not": (
        {"transfer": {"transport": "ipx"}},
        ["spec.transfer.transport", "ipx", "Any", "PreferRDMA", "RequireRDMA", "TCP"],
    ),
    "a device that is no name": (
        {"transfer": {"netDevices": ["mlx5 0"]}},
        ["spec.transfer.netDevices[0]", "mlx5 0"],
    ),
    **{
        f"data ports {ports}": (
            {"transfer": {"dataPorts": ports}},
            ["spec.transfer.dataPorts", ports, "within 1024-65535 and at least 16 ports"],
        )
        for ports in ("21000", "21000-21014", "80-2000", "65000-65536", "a-b", "22000-21000")
    },
    "an engine among the data ports": (
        {"engine": {"port": 21500}},
        ["engine.port 21500", "transfer.dataPorts 21000-21999"],
    ),
    "a heartbeat too quick": (
        {"transfer": {"timeouts": {"heartbeat": "299ms"}}},
        ["spec.transfer.timeouts.heartbeat", "299ms", "at least 300ms"],
    ),
    "a share above the whole": (
        {"transfer": {"quarantine": {"percent": 101}}},
        ["spec.transfer.quarantine.percent", "less than or equal to 100"],
    ),
    "a measure of RDMA that nobody takes": (
        {"transfer": {"transport": "RequireRDMA", "preflight": {"mode": "Off"}}},
        ["transfer.transport RequireRDMA", "preflight.mode Observe or Required, not Off"],
    ),
    "all chunks as a sample": (
        {"transfer": {"sampledPercent": 100}},
        ["spec.transfer.sampledPercent", "less than or equal to 99"],
    ),
    "a preflight that there is not": (
        {"transfer": {"preflight": {"mode": "Maybe"}}},
        ["spec.transfer.preflight.mode", "Maybe", "Required"],
    ),
    "an unknown field": ({"engine": {"typo": 1}}, ["spec.engine.typo", "unknown field"]),
    "no model": ({"model": {"source": ""}}, ["spec.model.source", "at least 1 chars"]),
}


OTHER_ROLE = {"prefill": "decode", "decode": "prefill"}


def mirrored(spec, words):
    """The same mistake in the other role: each role has rules of its own."""
    roles = {OTHER_ROLE[role]: value for role, value in spec["roles"].items()}
    return {**spec, "roles": roles}, [swapped(word) for word in words]


def swapped(word):
    for role, other in OTHER_ROLE.items():
        if role in word:
            return word.replace(role, other)
    return word


REFUSED |= {
    f"{name}, mirrored": mirrored(*row) for name, row in REFUSED.items() if "roles" in row[0]
}


@pytest.mark.parametrize("spec", ALLOWED.values(), ids=ALLOWED.keys())
def test_is_allowed(created, spec):
    created(spec)


@pytest.mark.parametrize(("spec", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_naming_field_value_and_what_is_allowed(missing, spec, words):
    lacks, message = missing(spec, words)
    assert not lacks, message
