"""One role in the status: how many groups of it there are, and which were restarted most. Pure."""

from disagg_operator.api.resource import Deployment
from disagg_operator.api.status import DisaggDeploymentStatus, GroupStatus, RoleStatus
from disagg_operator.groups import Restart
from disagg_operator.observe import Observed
from disagg_operator.plan import Plan
from disagg_operator.step import Restarts, ready_among, revisions
from disagg_operator.timestamps import seconds, timestamp_s

REASON_LIMIT = 512
GROUPS_LIMIT = 16


def role_status(deployment: Deployment, observed: Observed, plan: Plan, *, role: str) -> RoleStatus:
    revision = plan.update_revision
    spec = deployment.spec.role(role)
    pods = observed.role_pods(role, revision=revision)
    refresh = plan.refreshes.get(role)
    complete = [
        group
        for group in range(spec.replicas)
        if sum(pod.group == group for pod in pods) == spec.nodes_per_replica
        and not (refresh and group in refresh.outdated)
    ]
    everywhere = (pod for pod in observed.pods.values() if pod.role == role)
    return RoleStatus(
        name=role,
        desired=spec.replicas,
        ready=sum(
            len(ready_among(deployment, observed, role=role, revision=each))
            for each in revisions(observed)
        ),
        updated=len(complete),
        restarts=sum(record.restarts for pod in everywhere for record in pod.containers),
        groups=_restarted(plan.restarts, role=role),
    )


def _restarted(restarts: Restarts, *, role: str) -> tuple[GroupStatus, ...]:
    found = [
        GroupStatus(
            group=group,
            restarts=item.count,
            time=timestamp_s(item.at),
            reason=item.reason[:REASON_LIMIT],
        )
        for (known, group), item in restarts.items()
        if known == role
    ]
    worst = sorted(found, key=lambda item: (-item.restarts, item.group))[:GROUPS_LIMIT]
    return tuple(sorted(worst, key=lambda item: item.group))


def restarts_of(previous: DisaggDeploymentStatus, *, revision: str) -> Restarts:
    """What the status remembers of the revision's groups; another's restarts say nothing of it."""
    if previous.update_revision != revision:
        return {}
    return {
        (role.name, item.group): Restart(
            count=item.restarts, at=seconds(item.time), reason=item.reason
        )
        for role in previous.roles
        for item in role.groups
    }
