"""The transfer agent as a native sidecar: it starts before the engine and ends after it."""

import json
from typing import Any

from disagg_operator.api.quantities import duration_seconds, quantity_bytes
from disagg_operator.api.resource import Deployment
from disagg_operator.api.transfer import CreditsSpec, QuarantineSpec, Timeouts, TransferSpec
from disagg_operator.names import CONTAINER_AGENT, PREFILL, role_service_name
from disagg_operator.render.images import Images, agent_image
from disagg_operator.render.probes import http_probe
from disagg_operator.render.profiles import Profile, profile
from disagg_operator.render.resources import agent_resources
from disagg_operator.render.slots import Slot
from disagg_transfer import contract

Object = dict[str, Any]

RUN_VOLUME = "disagg-run"
RUN_PATH = "/run/disagg"
KEY_VOLUME = "disagg-key"
_KEY_FOLDER = contract.KEY_PATH.rpartition("/")[0]
TMP_VOLUME = "agent-tmp"
HUGEPAGES_VOLUME = "hugepages"


def agent_container(slot: Slot, *, profile: Profile, images: Images) -> Object:
    spec = slot.deployment.spec
    arena = arena_bytes(slot.deployment, profile=profile)
    port = contract.HTTP_PORT
    return {
        "name": CONTAINER_AGENT,
        "image": agent_image(slot.deployment, images),
        "imagePullPolicy": spec.engine.image_pull_policy,
        # The container's last words, for the condition that tells of its crash.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "command": ["disagg-agent", "serve"],
        "restartPolicy": "Always",
        "env": _env(slot, arena=arena, profile=profile),
        "ports": [
            {"name": "control", "containerPort": contract.CONTROL_PORT, "protocol": "TCP"},
            {"name": "agent-http", "containerPort": port, "protocol": "TCP"},
        ],
        "resources": agent_resources(
            spec.transfer.agent.resources,
            arena_bytes=arena if spec.transfer.arena.memory == "Host" else 0,
            devices=profile.agent_devices,
            claims=profile.claims,
        ),
        "startupProbe": http_probe(contract.PATH_STARTED, port, budget_s=60, period_s=1),
        "readinessProbe": http_probe(contract.PATH_READY, port, budget_s=4),
        "livenessProbe": http_probe(contract.PATH_LIVE, port, budget_s=30, period_s=5),
        "securityContext": profile.agent_security,
        "volumeMounts": [
            {"name": RUN_VOLUME, "mountPath": RUN_PATH},
            {"name": KEY_VOLUME, "mountPath": _KEY_FOLDER, "readOnly": True},
            {"name": TMP_VOLUME, "mountPath": "/tmp"},  # noqa: S108
            *hugepages_mount(profile),
        ],
    }


def hugepages_mount(profile: Profile) -> list[Object]:
    """Where UCX and engines look for them."""
    mount = {"name": HUGEPAGES_VOLUME, "mountPath": "/dev/hugepages"}
    return [mount] if profile.hugepages else []


def arena_bytes(deployment: Deployment, *, profile: Profile) -> int:
    asked = deployment.spec.transfer.arena.bytes
    return profile.arena_bytes if asked is None else quantity_bytes(asked)


def state_types(deployment: Deployment) -> tuple[str, ...]:
    """The model's state types by their registry names: what reports and status rows say."""
    return tuple(_canonical(name) for name in deployment.spec.model.state_types)


def _canonical(name: str) -> str:
    return contract.STATE_TYPE_ALIASES.get(name, name)


def _env(slot: Slot, *, arena: int, profile: Profile) -> list[Object]:
    deployment, transfer = slot.deployment, slot.deployment.spec.transfer
    values = {
        contract.ENV_NAMESPACE: deployment.namespace,
        contract.ENV_DEPLOYMENT: deployment.name,
        contract.ENV_REVISION: slot.revision,
        contract.ENV_ROLE: slot.role,
        contract.ENV_POD: slot.name,
        contract.ENV_GROUP: str(slot.group),
        contract.ENV_RANK: str(slot.rank),
        contract.ENV_RANKS: str(max(slot.role_spec.gpus_per_node, 1)),
        contract.ENV_MODEL: deployment.spec.model.source,
        contract.ENV_STATE_TYPES: ",".join(state_types(deployment)),
        contract.ENV_SOCKET: contract.SOCKET_PATH,
        contract.ENV_CONTROL_PORT: str(contract.CONTROL_PORT),
        contract.ENV_HTTP_PORT: str(contract.HTTP_PORT),
        contract.ENV_ARENA_BYTES: str(arena),
        contract.ENV_ARENA_MEMORY: contract.MemoryKind(transfer.arena.memory.lower()).value,
        contract.ENV_KEY_FILE: contract.KEY_PATH,
        **_peer_service(slot),
        contract.ENV_TIMEOUTS: _timeouts(transfer.timeouts),
        **_integrity(transfer),
        **_transport(deployment, profile=profile),
        contract.ENV_PREFLIGHT: contract.PreflightMode(transfer.preflight.mode.lower()).value,
        contract.ENV_CANARY: f"{duration_seconds(transfer.preflight.canary_interval):g}",
        contract.ENV_CREDITS: _credits(transfer.credits),
        contract.ENV_HEARTBEAT: _json(
            {"limitSeconds": duration_seconds(transfer.timeouts.heartbeat)}
        ),
        contract.ENV_QUARANTINE: _quarantine(transfer.quarantine),
        contract.ENV_FAULT_SWITCH: contract.FaultSwitch(transfer.fault_switch.lower()).value,
    }
    address = {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        {"name": contract.ENV_POD_IP, "valueFrom": address},
    ]


def _transport(deployment: Deployment, *, profile: Profile) -> dict[str, str]:
    """RequireRDMA does not take TCP from UCX: the agent starts, and says why it is not ready."""
    transfer = deployment.spec.transfer
    only_tcp = (transfer.transport or profile.transport) == "TCP"
    return {
        contract.ENV_TRANSPORT: "tcp" if only_tcp else "any",
        contract.ENV_TRANSPORT_POLICY: _policy(deployment, profile=profile).value,
        contract.ENV_NET_DEVICES: ",".join(transfer.net_devices),
        contract.ENV_DATA_PORTS: transfer.data_ports,
    }


def transport_policy(deployment: Deployment) -> contract.TransportPolicy:
    """What the agents hold themselves to; Any where only TCP is asked for."""
    spec = deployment.spec
    found = profile(spec.hardware, role=spec.role(PREFILL), transfer=spec.transfer)
    return _policy(deployment, profile=found)


def _policy(deployment: Deployment, *, profile: Profile) -> contract.TransportPolicy:
    asked = deployment.spec.transfer.transport or profile.transport
    return contract.TransportPolicy.ANY if asked == "TCP" else contract.TransportPolicy(asked)


def _integrity(transfer: TransferSpec) -> dict[str, str]:
    """The agent refuses a rate where nothing is sampled."""
    mode = contract.Integrity(transfer.integrity.lower())
    sampled = mode is contract.Integrity.SAMPLED
    rate = f"{transfer.sampled_percent / 100:g}" if sampled else ""
    return {contract.ENV_INTEGRITY: mode.value, contract.ENV_INTEGRITY_RATE: rate}


def _quarantine(limits: QuarantineSpec) -> str:
    return _json(
        {
            "share": limits.percent / 100,
            "lastingShare": limits.lasting_percent / 100,
            "lastingSeconds": duration_seconds(limits.lasting_time),
        }
    )


def _credits(limits: CreditsSpec) -> str:
    return _json(
        {
            "bytes": quantity_bytes(limits.bytes),
            "reads": limits.reads,
            "share": limits.arena_percent / 100,
        }
    )


def _json(value: Object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _peer_service(slot: Slot) -> dict[str, str]:
    """Decode meets prefill, not the other way round: it is decode that pulls."""
    if slot.role == PREFILL:
        return {}
    service = role_service_name(slot.deployment.name, role=PREFILL, revision=slot.revision)
    return {contract.ENV_PEER_SERVICE: f"{service}.{slot.deployment.namespace}.svc"}


def _timeouts(timeouts: Timeouts) -> str:
    stages = timeouts.stages.model_dump(exclude_none=True)
    types = timeouts.state_types
    value = {
        "default": duration_seconds(timeouts.default),
        "stages": {stage: duration_seconds(text) for stage, text in stages.items()},
        "stateTypes": {_canonical(name): duration_seconds(text) for name, text in types.items()},
    }
    return _json(value)
