"""What every part of one decision looks at, and the questions that several of them ask. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from disagg_operator import names
from disagg_operator.api.quantities import duration_seconds, share_of
from disagg_operator.api.resource import Deployment
from disagg_operator.groups import Policy, Restart
from disagg_operator.intents import Delete
from disagg_operator.kinds import Kind
from disagg_operator.observe import (
    AgentView,
    GuardRecord,
    Observed,
    PodRecord,
    RouterRecord,
    ScalerRecord,
    ServiceRecord,
)
from disagg_operator.render import Images
from disagg_operator.rollout import Refresh, Targets
from disagg_operator.root_key import RootKey
from disagg_operator.rotation import Keys

Restarts = Mapping[tuple[str, int], Restart]  # by role and group


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    deployment: Deployment
    observed: Observed
    images: Images
    keys: Keys | None  # what the status tells of
    keys_at: float  # when this process wrote them last
    root: RootKey
    update: str
    targets: Targets
    refreshes: Mapping[str, Refresh]
    restarts: dict[tuple[str, int], Restart]
    views: Mapping[str, AgentView]
    now: float
    gangs: frozenset[str] = frozenset()  # names of the PodGroups that it has created
    wakes: list[float] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return restart_policy(self.deployment)

    @property
    def routed(self) -> bool:
        return is_routed(self.deployment)

    def members(self, *, role: str, group: int) -> dict[int, PodRecord | None]:
        """The pods of a group of the update revision, by rank; None where there is none."""
        name = self.deployment.name
        return {
            rank: self.observed.pods.get(
                names.pod_name(name, role=role, revision=self.update, group=group, rank=rank)
            )
            for rank in range(self.deployment.spec.role(role).nodes_per_replica)
        }

    @property
    def router(self) -> RouterRecord | None:
        return self.observed.routers.get(
            names.router_name(self.deployment.name, revision=self.update)
        )


def is_routed(deployment: Deployment) -> bool:
    return deployment.spec.router.type == "sglang"


def restart_policy(deployment: Deployment) -> Policy:
    restart = deployment.spec.restart
    return Policy(
        base_s=duration_seconds(restart.base_delay),
        limit_s=duration_seconds(restart.max_delay),
        most=restart.max_restarts,
        reset_s=duration_seconds(restart.reset_after),
    )


def rollout_bounds(deployment: Deployment, *, role: str) -> tuple[int, int]:
    """Groups of a role that there may be above the number asked for, and below it."""
    wanted, rollout = deployment.spec.role(role).replicas, deployment.spec.rollout
    surge = max(1, share_of(rollout.max_surge, wanted, up=True))
    return surge, min(wanted, share_of(rollout.max_unavailable, wanted, up=False))


def groups_wanted(deployment: Deployment) -> int:
    return sum(deployment.spec.role(role).replicas for role in names.ROLES)


def pods_wanted(deployment: Deployment) -> int:
    """Prefill and decode pods of one whole revision; each has an agent."""
    specs = [deployment.spec.role(role) for role in names.ROLES]
    return sum(spec.replicas * spec.nodes_per_replica for spec in specs)


def draining(observed: Observed, *, revision: str) -> bool:
    """A router process that was told to end still has requests in hand."""
    return any(pod.deleting for pod in observed.role_pods(names.ROUTER, revision=revision))


def group_ready(pods: Iterable[PodRecord], *, size: int) -> bool:
    """Every rank is there and ready; one that is being deleted counts no more."""
    ready = {pod.rank for pod in pods if pod.ready and not pod.deleting}
    return ready >= set(range(size))


def ready_among(
    deployment: Deployment, observed: Observed, *, role: str, revision: str
) -> frozenset[int]:
    """Indices of the groups of a revision that are ready, wanted or not."""
    size = deployment.spec.role(role).nodes_per_replica
    pods = observed.role_pods(role, revision=revision)
    return frozenset(
        group
        for group in {pod.group for pod in pods}
        if group >= 0 and group_ready((pod for pod in pods if pod.group == group), size=size)
    )


def ready_groups(deployment: Deployment, observed: Observed, *, role: str, revision: str) -> int:
    """How many of the groups that the spec asks for are ready."""
    ready = ready_among(deployment, observed, role=role, revision=revision)
    return sum(group < deployment.spec.role(role).replicas for group in ready)


def present_groups(observed: Observed, *, role: str, revision: str) -> frozenset[int]:
    """Groups with any pod, also one that is on its way out: it still holds its devices."""
    pods = observed.role_pods(role, revision=revision)
    return frozenset(pod.group for pod in pods)


def revisions(observed: Observed) -> frozenset[str]:
    pods = {pod.revision for pod in observed.pods.values() if pod.role in names.ROLES}
    peers = {s.revision for s in observed.services.values() if s.role in names.ROLES}
    routers = {router.revision for router in observed.routers.values()}
    return frozenset((pods | peers | routers) - {""})


def deleted(pod: PodRecord, reason: str) -> Delete:
    return Delete(kind=Kind.POD, name=pod.name, uid=pod.uid, reason=reason)


def gone(
    kind: Kind, record: ServiceRecord | RouterRecord | GuardRecord | ScalerRecord, reason: str
) -> Delete:
    return Delete(kind=kind, name=record.name, uid=record.uid, reason=reason)
