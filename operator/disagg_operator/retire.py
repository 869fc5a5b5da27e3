"""Revisions that the spec no longer asks for: how much of them stays, and the order of their end.

Clients leave first, then pods: a worker is taken off its router's list, or the router itself goes,
and a pod is deleted only when no router process is left that could still send to it. A router
that is told to end finishes what it has in hand, for `spec.rollout.drain`.
"""

from collections.abc import Iterator, Mapping

from disagg_operator import names, render
from disagg_operator.api.resource import Deployment
from disagg_operator.drift import applied
from disagg_operator.intents import Intent
from disagg_operator.kinds import Kind
from disagg_operator.observe import Observed, PodRecord
from disagg_operator.rollout import Side
from disagg_operator.step import (
    Step,
    deleted,
    draining,
    gone,
    is_routed,
    present_groups,
    ready_among,
    revisions,
)

Kept = Mapping[str, frozenset[int]]  # groups by role


def side(deployment: Deployment, observed: Observed, *, role: str, revision: str) -> Side:
    """One role of one revision; without a part of the other role, or a router, it serves nothing."""
    ready = {
        each: ready_among(deployment, observed, role=each, revision=revision)
        for each in names.ROLES
    }
    reached = all(ready.values()) and (
        not is_routed(deployment) or router_serves(deployment, observed, revision=revision)
    )
    return Side(
        present=len(present_groups(observed, role=role, revision=revision)),
        serving=len(ready[role]) if reached else 0,
    )


def router_serves(deployment: Deployment, observed: Observed, *, revision: str) -> bool:
    router = observed.routers.get(names.router_name(deployment.name, revision=revision))
    return router is not None and router.ready > 0


def retired(step: Step) -> Iterator[Intent]:
    left = dict(step.targets.old)
    for revision in _by_capacity(step):
        kept = _kept(step, revision, left)
        for role, groups in kept.items():
            left[role] -= len(groups)
        if any(kept.values()):
            yield from _trimmed(step, revision, kept)
        else:
            yield from _ended(step, revision)


def _by_capacity(step: Step) -> list[str]:
    """The revision that serves most stays longest."""

    def serving(revision: str) -> int:
        return sum(
            side(step.deployment, step.observed, role=role, revision=revision).serving
            for role in names.ROLES
        )

    others = revisions(step.observed) - {step.update}
    return sorted(others, key=lambda revision: (-serving(revision), revision))


def _kept(step: Step, revision: str, left: Mapping[str, int]) -> Kept:
    """Ready groups first, then low indices; a revision without one of the roles goes whole."""
    kept = {}
    for role in names.ROLES:
        ready = ready_among(step.deployment, step.observed, role=role, revision=revision)
        present = present_groups(step.observed, role=role, revision=revision)
        order = sorted(present, key=lambda group: (group not in ready, group))
        kept[role] = frozenset(order[: max(0, left[role])])
    return kept if all(kept.values()) else dict.fromkeys(names.ROLES, frozenset())


def _trimmed(step: Step, revision: str, kept: Kept) -> Iterator[Intent]:
    surplus = [pod for pod in _pods(step, revision) if pod.group not in kept[pod.role]]
    name = names.router_name(step.deployment.name, revision=revision)
    router = step.observed.routers.get(name)
    if router is not None:
        leaders = {
            names.pod_name(step.deployment.name, role=role, revision=revision, group=group, rank=0)
            for role, groups in kept.items()
            for group in groups
        }
        body = render.trimmed_router(
            step.deployment, revision=revision, spec=router.spec.value, leaders=leaders
        )
        changes = list(applied(Kind.DEPLOYMENT, body, step.observed.routers)) if surplus else []
        yield from changes
        if router.ready and (
            changes or not router.settled or draining(step.observed, revision=revision)
        ):
            return
    for pod in surplus:
        yield deleted(pod, f"revision {revision} makes room")


def _ended(step: Step, revision: str) -> Iterator[Intent]:
    reason = f"revision {revision} is over"
    routers = [r for r in step.observed.routers.values() if r.revision == revision]
    for router in routers:
        yield gone(Kind.DEPLOYMENT, router, reason)
    # Its pods are deleted by others, some time after it.
    if routers or step.observed.role_pods(names.ROUTER, revision=revision):
        return
    for pod in _pods(step, revision):
        yield deleted(pod, reason)
    for service in step.observed.services.values():
        if service.role in names.ROLES and service.revision == revision:
            yield gone(Kind.SERVICE, service, reason)


def _pods(step: Step, revision: str) -> list[PodRecord]:
    return [
        pod
        for role in names.ROLES
        for pod in step.observed.role_pods(role, revision=revision)
        if not pod.deleting
    ]
