"""Pods of a group, in three layers: defaults, the manifest's overlay, and what stays ours."""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.render import agents, engines
from disagg_operator.render.gangs import gang_fields
from disagg_operator.render.images import Images
from disagg_operator.render.metadata import labels, metadata
from disagg_operator.render.overlay import merged
from disagg_operator.render.profiles import Profile, profile
from disagg_operator.render.revisions import template
from disagg_operator.render.services import selector
from disagg_operator.render.slots import Slot
from disagg_operator.timestamps import timestamp_s

Object = dict[str, Any]

_ENGINE_TMP = "engine-tmp"
_SHARED_MEMORY = "shared-memory"
_GRACE_S = {"reference": 10, "sglang": 30, "custom": 30}


def pod(
    deployment: Deployment, *, role: str, group: int, rank: int, revision: str, images: Images
) -> Object:
    """One pod of a group; immutable, so a changed spec means another revision."""
    slot = Slot(deployment=deployment, role=role, group=group, rank=rank, revision=revision)
    spec = deployment.spec
    hardware = profile(spec.hardware, role=slot.role_spec, transfer=spec.transfer)
    own = _defaults(slot, profile=hardware, images=images)
    defaults = {"spec": merged(own, _near_one_another(slot))}
    defaults = merged(defaults, gang_fields(slot))
    layered = merged(merged(defaults, _overlay(slot)), _owned(slot, profile=hardware))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": layered["metadata"],
        "spec": layered["spec"],
    }


def pod_gate(
    deployment: Deployment,
    *,
    pod: str,
    uid: str,
    is_open: bool,
    reason: str,
    message: str,
    now: float,
) -> Object:
    """What the status of a pod with a gate is told; the rest of it is the kubelet's."""
    condition = {
        "type": names.GATE_STATE_MOVES,
        "status": "True" if is_open else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": timestamp_s(now),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod, "namespace": deployment.namespace, "uid": uid},
        "status": {"conditions": [condition]},
    }


def _defaults(slot: Slot, *, profile: Profile, images: Images) -> Object:
    spec = slot.deployment.spec
    secrets = [{"name": secret.name} for secret in spec.engine.image_pull_secrets]
    return {
        **({"imagePullSecrets": secrets} if secrets else {}),
        "terminationGracePeriodSeconds": _GRACE_S[spec.engine.type],
        "automountServiceAccountToken": False,
        # Variables for every Service of the namespace help nobody and cost start-up time.
        "enableServiceLinks": False,
        "securityContext": profile.pod_security,
        **profile.pod_fields,
        "initContainers": [agents.agent_container(slot, profile=profile, images=images)],
        "containers": [
            {
                **engines.engine_container(slot, profile=profile, images=images),
                "volumeMounts": [{"name": _ENGINE_TMP, "mountPath": "/tmp"}],  # noqa: S108
            }
        ],
        "volumes": [{"name": _ENGINE_TMP, "emptyDir": {}}],
    }


def _near_one_another(slot: Slot) -> Object:
    """The pods of a group of several, as `hardware.topology` asks."""
    topology = slot.deployment.spec.hardware.topology
    if topology is None or slot.role_spec.nodes_per_replica == 1:
        return {}
    group = {
        **selector(slot.deployment, role=slot.role, revision=slot.revision),
        names.LABEL_GROUP: str(slot.group),
    }
    term = {"topologyKey": topology.key, "labelSelector": {"matchLabels": group}}
    if topology.policy == "Required":
        found: Object = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    else:
        weighed = {"weight": 100, "podAffinityTerm": term}
        found = {"preferredDuringSchedulingIgnoredDuringExecution": [weighed]}
    return {"affinity": {"podAffinity": found}}


def _overlay(slot: Slot) -> Object:
    """Only what the manifest says, not what the server filled in."""
    template = slot.role_spec.template
    return template.model_dump(by_alias=True, exclude_defaults=True, mode="json")


def _owned(slot: Slot, *, profile: Profile) -> Object:
    own = labels(slot.deployment, component=slot.role, revision=slot.revision)
    own |= {names.LABEL_GROUP: str(slot.group), names.LABEL_RANK: str(slot.rank)}
    made_from = template(slot.deployment, role=slot.role)
    own |= {names.LABEL_TEMPLATE: made_from} if made_from else {}
    mounts: list[Object] = [
        {"name": agents.RUN_VOLUME, "mountPath": agents.RUN_PATH},
        *agents.hugepages_mount(profile),
    ]
    if profile.shared_memory:
        mounts.append({"name": _SHARED_MEMORY, "mountPath": "/dev/shm"})  # noqa: S108
    engine = {
        "name": names.CONTAINER_ENGINE,
        "env": engines.owned_env(slot),
        "volumeMounts": mounts,
    }
    return {
        "metadata": metadata(slot.deployment, name=slot.name, labels=own),
        "spec": {
            "restartPolicy": "Always",
            **_gates(slot),
            "hostname": slot.name,
            "subdomain": slot.service,
            "containers": [engine],
            "volumes": _volumes(slot, profile=profile),
        },
    }


def _gates(slot: Slot) -> Object:
    """Opened by the operator, once agents have seen state move."""
    required = slot.deployment.spec.transfer.preflight.mode == "Required"
    return {"readinessGates": [{"conditionType": names.GATE_STATE_MOVES}]} if required else {}


def _volumes(slot: Slot, *, profile: Profile) -> list[Object]:
    secret = names.key_secret_name(slot.deployment.name, revision=slot.revision)
    volumes: list[Object] = [
        {"name": agents.RUN_VOLUME, "emptyDir": {}},
        {"name": agents.TMP_VOLUME, "emptyDir": {}},
        # Readable by the pod's group, which fsGroup makes the agent's own.
        {"name": agents.KEY_VOLUME, "secret": {"secretName": secret, "defaultMode": 0o440}},
    ]
    if profile.hugepages:
        medium = f"HugePages-{profile.hugepages}"
        volumes.append({"name": agents.HUGEPAGES_VOLUME, "emptyDir": {"medium": medium}})
    if profile.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": profile.shared_memory}
        volumes.append({"name": _SHARED_MEMORY, "emptyDir": memory})
    return volumes
