"""The engine's container, by engine type."""

from typing import Any

from disagg_operator.names import CONTAINER_ENGINE
from disagg_operator.render.images import Images, engine_image
from disagg_operator.render.probes import http_probe
from disagg_operator.render.profiles import Profile
from disagg_operator.render.resources import engine_resources
from disagg_operator.render.slots import Slot
from disagg_transfer import contract

Object = dict[str, Any]

# SGLang's name for our plug-in, which puts the agent in the place of its own connectors.
_SGLANG_BACKEND = "disagg"
# Where the ranks of one group meet; SGLang's documentation uses this port.
_RENDEZVOUS_PORT = 20000
# The reference engine makes small weights; real ones are read for many minutes.
_START_BUDGET_S = {"reference": 300, "sglang": 1800, "custom": 1800}


def engine_container(slot: Slot, *, profile: Profile, images: Images) -> Object:
    spec = slot.deployment.spec
    return {
        "name": CONTAINER_ENGINE,
        "image": engine_image(slot.deployment, images),
        "imagePullPolicy": spec.engine.image_pull_policy,
        # The container's last words, for the condition that tells of its crash.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_command(slot),
        "env": _env(slot, profile=profile),
        "ports": [{"name": "http", "containerPort": spec.engine.port, "protocol": "TCP"}],
        "resources": engine_resources(
            slot.role_spec.resources,
            reference=spec.engine.type == "reference",
            devices=profile.engine_devices,
            claims=profile.claims,
        ),
        "startupProbe": http_probe(
            "/health", spec.engine.port, budget_s=_START_BUDGET_S[spec.engine.type]
        ),
        "readinessProbe": http_probe("/health", spec.engine.port, budget_s=4),
        "securityContext": profile.engine_security,
    }


def owned_env(slot: Slot) -> list[Object]:
    """What an engine needs to find its agent; nothing in a manifest may change it."""
    return _pairs(
        {
            contract.ENV_SOCKET: contract.SOCKET_PATH,
            contract.ENV_ROLE: slot.role,
            contract.ENV_MODEL: slot.deployment.spec.model.source,
            contract.ENV_REVISION: slot.revision,
            contract.ENV_BOOTSTRAP_PORT: str(contract.CONTROL_PORT),
        }
    )


def _env(slot: Slot, *, profile: Profile) -> list[Object]:
    """The role's wins over the engine's, which wins over the profile's."""
    given = (*slot.deployment.spec.engine.env, *slot.role_spec.env)
    found = {item["name"]: item for item in (*owned_env(slot), *_pairs(dict(profile.engine_env)))}
    for variable in given:
        found[variable.name] = variable.model_dump(by_alias=True, exclude_none=True, mode="json")
    return list(found.values())


def _pairs(values: dict[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _command(slot: Slot) -> Object:
    """A custom engine's command is its image's, or the overlay's."""
    args = [*slot.deployment.spec.engine.args, *slot.role_spec.args]
    match slot.deployment.spec.engine.type:
        case "reference":
            return {"command": ["disagg-engine"], "args": [*_reference_args(slot), *args]}
        case "sglang":
            command = ["python3", "-m", "sglang.launch_server"]
            return {"command": command, "args": [*_sglang_args(slot), *args]}
        case "custom":
            return {"args": args} if args else {}


def _reference_args(slot: Slot) -> list[str]:
    spec = slot.deployment.spec
    return [
        *("--role", slot.role),
        *("--model", spec.model.source),
        *("--seed", "0"),
        *("--port", str(spec.engine.port)),
        *("--socket", contract.SOCKET_PATH),
    ]


def _sglang_args(slot: Slot) -> list[str]:
    spec = slot.deployment.spec
    return [
        *("--model-path", spec.model.source),
        *("--served-model-name", spec.model.served_name or slot.deployment.name),
        *("--host", "0.0.0.0"),  # noqa: S104
        *("--port", str(spec.engine.port)),
        *("--disaggregation-mode", slot.role),
        *("--disaggregation-transfer-backend", _SGLANG_BACKEND),
        *("--disaggregation-bootstrap-port", str(contract.CONTROL_PORT)),
        *_sglang_parallelism(slot),
    ]


def _sglang_parallelism(slot: Slot) -> list[str]:
    parallelism, nodes = slot.role_spec.parallelism, slot.role_spec.nodes_per_replica
    args = ["--tp-size", str(parallelism.tp)]
    if parallelism.pp > 1:
        args += ["--pp-size", str(parallelism.pp)]
    if parallelism.dp > 1:
        args += ["--dp-size", str(parallelism.dp), "--enable-dp-attention"]
    if parallelism.ep > 1:
        args += ["--ep-size", str(parallelism.ep)]
    if nodes > 1:
        args += ["--nnodes", str(nodes), "--node-rank", str(slot.rank)]
        args += ["--dist-init-addr", f"{slot.leader().address}:{_RENDEZVOUS_PORT}"]
    return args
