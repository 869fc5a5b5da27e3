"""The revision: a name for what the pods are made from."""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.api.spec import DisaggDeploymentSpec, RoleSpec, RolesSpec
from disagg_operator.render.images import Images, agent_image, engine_image
from disagg_operator.render.metadata import digest

# As Kubernetes' own safe encoding: no vowels, so no words, and nothing that reads as a number.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_NOT_PODS = ("disruption", "network_policy", "paused", "restart", "rollout", "router")


def revision(deployment: Deployment, *, images: Images) -> str:
    """Five characters; the same for the same pods, whatever else of the spec changes.

    Not part of it: replicas and who sets them, paused, restart, rollout, what guards the pods, the router (it has a Deployment of its own), and fields left
    at their defaults, so that a new field of a newer operator restarts nothing.
    """
    source = {
        "spec": _made_from(deployment),
        "images": [agent_image(deployment, images), engine_image(deployment, images)],
    }
    number = int(digest(source), 16)
    letters = []
    for _ in range(names.REVISION_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def _made_from(deployment: Deployment) -> dict[str, Any]:
    spec = deployment.spec
    defaults = {name: DisaggDeploymentSpec.model_fields[name].default for name in _NOT_PODS}
    roles = RolesSpec(prefill=_one_group(spec.roles.prefill), decode=_one_group(spec.roles.decode))
    pods = spec.model_copy(update={**defaults, "roles": roles})
    return pods.model_dump(mode="json", exclude_defaults=True)


def _one_group(role: RoleSpec) -> RoleSpec:
    counted = ("replicas", "scaling")
    return role.model_copy(update={name: RoleSpec.model_fields[name].default for name in counted})
