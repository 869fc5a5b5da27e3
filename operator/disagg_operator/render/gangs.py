"""PodGroups, by which Volcano places the pods of one group together or not at all."""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.kinds import Kind
from disagg_operator.render.metadata import labels, metadata
from disagg_operator.render.slots import Slot

Object = dict[str, Any]

_SCHEDULER = "volcano"
_GROUP_NAME = "scheduling.k8s.io/group-name"  # the annotation that Volcano reads


def is_gang(deployment: Deployment, *, role: str) -> bool:
    """One pod alone is placed whole anyway."""
    volcano = deployment.spec.scheduling.gang == "Volcano"
    return volcano and deployment.spec.role(role).nodes_per_replica > 1


def pod_group(deployment: Deployment, *, role: str, group: int, revision: str) -> Object:
    """Created once and never changed: the number of nodes cannot, and a queue makes a revision."""
    own = labels(deployment, component=role, revision=revision)
    name = names.gang_name(deployment.name, role=role, revision=revision, group=group)
    queue = deployment.spec.scheduling.queue
    return {
        "apiVersion": Kind.POD_GROUP.api_version,
        "kind": Kind.POD_GROUP.kind,
        "metadata": metadata(deployment, name=name, labels=own),
        "spec": {
            "minMember": deployment.spec.role(role).nodes_per_replica,
            **({"queue": queue} if queue else {}),
        },
    }


def gang_fields(slot: Slot) -> Object:
    """Of a pod; both roles go by one scheduler, since two do not see each other's choices."""
    if slot.deployment.spec.scheduling.gang == "None":
        return {}
    found: Object = {"spec": {"schedulerName": _SCHEDULER}}
    if is_gang(slot.deployment, role=slot.role):
        name = names.gang_name(
            slot.deployment.name, role=slot.role, revision=slot.revision, group=slot.group
        )
        found["metadata"] = {"annotations": {_GROUP_NAME: name}}
    return found
