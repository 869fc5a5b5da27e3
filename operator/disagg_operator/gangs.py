"""PodGroups that pods of the update revision wait for: pure."""

from collections.abc import Iterator

from disagg_operator import names, render
from disagg_operator.intents import EnsureGang
from disagg_operator.step import Step


def gang_intents(step: Step, *, role: str, group: int) -> Iterator[EnsureGang]:
    """Asked again until this process has seen it made, or all pods have their nodes: PodGroups are
    not ours to read, so that no right but to create them is needed.
    """
    deployment = step.deployment
    if not render.is_gang(deployment, role=role):
        return
    name = names.gang_name(deployment.name, role=role, revision=step.update, group=group)
    placed = all(pod and pod.node for pod in step.members(role=role, group=group).values())
    if name in step.gangs or placed:
        return
    yield EnsureGang(
        name=name,
        body=render.pod_group(deployment, role=role, group=group, revision=step.update),
        service=names.role_service_name(deployment.name, role=role, revision=step.update),
        reason="the pods of the group are placed by it",
    )
