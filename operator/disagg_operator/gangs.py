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
    body = render.pod_group(deployment, role=role, group=group, revision=step.update)
    name = body["metadata"]["name"]
    if name in step.gangs or _placed(step, role=role, group=group):
        return
    yield EnsureGang(
        name=name,
        body=body,
        service=names.role_service_name(deployment.name, role=role, revision=step.update),
        reason="the pods of the group are placed by it",
    )


def _placed(step: Step, *, role: str, group: int) -> bool:
    ranks = range(step.deployment.spec.role(role).nodes_per_replica)
    pods = [
        step.observed.pods.get(
            names.pod_name(
                step.deployment.name, role=role, revision=step.update, group=group, rank=rank
            )
        )
        for rank in ranks
    ]
    return all(pod is not None and pod.node for pod in pods)
