"""What pods are made from, as names: the revision of both roles, and the template of one.

Pods of one revision pair with one another; a change that lets them go on doing so (R7) is a change
of the template of one role, whose pods alone are then made anew.
"""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.api.spec import DisaggDeploymentSpec, RoleSpec, RolesSpec
from disagg_operator.api.transfer import TransferSpec
from disagg_operator.render.images import Images, agent_image, engine_image
from disagg_operator.render.metadata import digest

# As Kubernetes' own safe encoding: no vowels, so no words, and nothing that reads as a number.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_NOT_PODS = ("disruption", "network_policy", "paused", "restart", "rollout", "router")
_KEY_ROTATION = TransferSpec.model_fields["key_rotation"].default
_COUNTED = ("replicas", "scaling")
# Nothing that the peer could notice. Arguments are not among them: a page size is one.
_OF_ONE_ROLE = ("env", "resources", "template")


def revision(deployment: Deployment, *, images: Images) -> str:
    """Five characters; the same for pods that pair, whatever else of the spec changes.

    Not part of it: replicas and who sets them, paused, restart, rollout, what guards the pods, how
    often keys change, the router (it has a Deployment of its own), what `template` has, and fields left at their defaults,
    so that a new field of a newer operator restarts nothing.
    """
    source = {
        "spec": _made_from(deployment),
        "images": [agent_image(deployment, images), engine_image(deployment, images)],
    }
    return _letters(source)


def template(deployment: Deployment, *, role: str) -> str:
    """Five characters for the role's environment, resources and overlay; empty for the defaults."""
    spec = deployment.spec.role(role)
    source = spec.model_dump(mode="json", exclude_defaults=True, include=set(_neutral(spec)))
    return _letters(source) if source else ""


def _letters(source: dict[str, Any]) -> str:
    number = int(digest(source), 16)
    letters = []
    for _ in range(names.REVISION_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def _made_from(deployment: Deployment) -> dict[str, Any]:
    spec = deployment.spec
    defaults = {name: DisaggDeploymentSpec.model_fields[name].default for name in _NOT_PODS}
    roles = RolesSpec(prefill=_pairing(spec.roles.prefill), decode=_pairing(spec.roles.decode))
    transfer = spec.transfer.model_copy(update={"key_rotation": _KEY_ROTATION})
    pods = spec.model_copy(update={**defaults, "roles": roles, "transfer": transfer})
    return pods.model_dump(mode="json", exclude_defaults=True)


def _pairing(role: RoleSpec) -> RoleSpec:
    left_out = (*_COUNTED, *_neutral(role))
    return role.model_copy(update={name: RoleSpec.model_fields[name].default for name in left_out})


def _neutral(role: RoleSpec) -> tuple[str, ...]:
    """An overlay of the engine may have another image or other arguments: both roles' matter."""
    overlaid = any(item.name == names.CONTAINER_ENGINE for item in role.template.spec.containers)
    return tuple(name for name in _OF_ONE_ROLE if not (overlaid and name == "template"))
