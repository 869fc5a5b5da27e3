"""Roles that somebody else scales: what their scalers ask for, and what they are told. Pure.

The operator makes a scaler once, with `roles.ROLE.replicas` of that moment, and never writes its
`spec` again. From then on the scaler's number is the role's: it is put into the deployment at the
start of each pass, so that everything behind sees one number only, also in the midst of a rollout.
"""

from collections.abc import Iterator, Mapping

from disagg_operator import names, render
from disagg_operator.api.resource import Deployment
from disagg_operator.api.scaler import RoleScalerStatus
from disagg_operator.intents import CreateScaler, Intent, Tell
from disagg_operator.kinds import Kind
from disagg_operator.observe import Observed, ScalerRecord
from disagg_operator.step import Step, gone


def scaled(deployment: Deployment, scalers: Mapping[str, ScalerRecord]) -> Deployment:
    """The deployment with the numbers of its scalers; its own for a role that has none."""
    roles = deployment.spec.roles
    asked = {role: scalers.get(names.scaler_name(deployment.name, role)) for role in names.ROLES}
    changes = {
        role: deployment.spec.role(role).model_copy(update={"replicas": record.replicas})
        for role, record in asked.items()
        if record is not None and deployment.spec.role(role).scaling.mode == "External"
    }
    return deployment.with_roles(roles.model_copy(update=changes)) if changes else deployment


def scaler_intents(step: Step) -> Iterator[Intent]:
    deployment, known = step.deployment, step.observed.scalers
    for role in names.ROLES:
        name = names.scaler_name(deployment.name, role)
        record = known.get(name)
        if deployment.spec.role(role).scaling.mode == "External":
            if record is None:
                body = render.role_scaler(deployment, role=role)
                yield CreateScaler(name=name, body=body, reason=f"{role} is scaled from outside")
            else:
                yield from _told(step, record, role)
        elif record is not None:
            yield gone(Kind.SCALER, record, f"{role} is not scaled from outside")


def _told(step: Step, record: ScalerRecord, role: str) -> Iterator[Intent]:
    groups = _leaders(step.observed, role)
    selector = render.leader_selector(step.deployment, role=role)
    told = (record.told_generation, record.told_replicas, record.told_selector)
    if told != (record.generation, groups, selector):
        status = RoleScalerStatus(
            observed_generation=record.generation, replicas=groups, selector=selector
        )
        body = render.role_scaler_status(step.deployment, role=role, uid=record.uid, status=status)
        yield Tell(kind=Kind.SCALER, name=record.name, body=body, reason=f"{groups} groups")


def _leaders(observed: Observed, role: str) -> int:
    return sum(
        pod.role == role and pod.rank == 0 and not pod.deleting for pod in observed.pods.values()
    )
