"""The scaler of a role, and what it is told."""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.api.scaler import RoleScalerStatus
from disagg_operator.render.metadata import labels, metadata

Object = dict[str, Any]


def role_scaler(deployment: Deployment, *, role: str) -> Object:
    """As it is made, once."""
    name = names.scaler_name(deployment.name, role)
    own = labels(deployment, component=role)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SCALER_KIND,
        "metadata": metadata(deployment, name=name, labels=own),
        "spec": {"replicas": deployment.spec.role(role).replicas},
    }


def role_scaler_status(
    deployment: Deployment, *, role: str, uid: str, status: RoleScalerStatus
) -> Object:
    """Its whole status; the uid makes the server refuse it for another object of that name."""
    name = names.scaler_name(deployment.name, role)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SCALER_KIND,
        "metadata": {"name": name, "namespace": deployment.namespace, "uid": uid},
        "status": status.model_dump(by_alias=True),
    }


def leader_selector(deployment: Deployment, *, role: str) -> str:
    """One pod of each group: autoscalers divide what they measure by the number of groups."""
    wanted = {
        names.LABEL_DEPLOYMENT: deployment.name,
        names.LABEL_ROLE: role,
        names.LABEL_RANK: "0",
    }
    return ",".join(f"{label}={value}" for label, value in wanted.items())
