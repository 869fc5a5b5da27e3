"""A DisaggDeployment as the operator holds it: identity and parsed spec."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from disagg_operator.api.spec import DisaggDeploymentSpec, RolesSpec


class InvalidDeploymentError(ValueError):
    """The object is not what this operator's CRD admits: CRD and operator differ in version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    name: str
    namespace: str
    uid: str
    generation: int
    deleting: bool
    spec: DisaggDeploymentSpec

    def with_roles(self, roles: RolesSpec) -> "Deployment":
        return replace(self, spec=self.spec.model_copy(update={"roles": roles}))


def parse_deployment(body: Mapping[str, Any]) -> Deployment:
    """The API server has validated and defaulted the body; a refusal here names the field."""
    metadata = body["metadata"]
    try:
        spec = DisaggDeploymentSpec.model_validate(dict(body.get("spec") or {}))
    except ValidationError as error:
        raise InvalidDeploymentError(_first_problem(error)) from error
    return Deployment(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        deleting=metadata.get("deletionTimestamp") is not None,
        spec=spec,
    )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in ("spec", *problem["loc"]))
    return (
        f"{path}: {problem['msg']} (value {problem['input']!r}); "
        "install the CRD of this operator's version, or correct the field"
    )
