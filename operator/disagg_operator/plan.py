"""What to do next, from the resource and one observation: pure.

Two revisions live side by side during a rollout. `update` is the one that the spec asks for and
the only one that can still be rendered; `serving` is the one that the client Service points at.
The new one is built in full and proven (every group and the router ready), then the Service is
switched, and only then is the old one taken down. A revision that is neither goes at once.

Level-triggered: nothing here knows what happened before, and a converged resource gives an empty
plan.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_operator import names, render
from disagg_operator.api.quantities import duration_seconds
from disagg_operator.api.resource import Deployment
from disagg_operator.groups import STUCK_S, Group, Policy, Restart, broken, stuck
from disagg_operator.intents import Apply, CreatePod, Delete, EnsureKey, Intent
from disagg_operator.kinds import Json, Kind
from disagg_operator.observe import Observed, PodRecord, RouterRecord, ServiceRecord
from disagg_operator.render import Images

Restarts = Mapping[tuple[str, int], Restart]  # by role and group


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order; the intents of one stage do not depend on one another."""

    update_revision: str
    serving_revision: str
    stages: tuple[tuple[Intent, ...], ...]
    restarts: Restarts = field(default_factory=dict)  # after this plan, of the update revision
    wake_at: float | None = None  # when time alone changes the plan

    @property
    def intents(self) -> tuple[Intent, ...]:
        return tuple(intent for stage in self.stages for intent in stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    deployment: Deployment
    observed: Observed
    images: Images
    keys: frozenset[str]  # revisions whose key this process has created
    update: str
    serving: str
    restarts: dict[tuple[str, int], Restart]
    now: float
    wakes: list[float] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return restart_policy(self.deployment)

    @property
    def routed(self) -> bool:
        return self.deployment.spec.router.type == "sglang"

    @property
    def router(self) -> RouterRecord | None:
        return self.observed.routers.get(
            names.router_name(self.deployment.name, revision=self.update)
        )


def decide(
    deployment: Deployment,
    observed: Observed,
    *,
    images: Images,
    keys: frozenset[str],
    restarts: Restarts,
    now: float,
) -> Plan:
    """`restarts` are those of the update revision that the status tells of."""
    update = render.revision(deployment, images=images)
    step = _Pass(
        deployment=deployment,
        observed=observed,
        images=images,
        keys=keys,
        update=update,
        serving=serving_revision(deployment, observed, update=update),
        restarts=dict(restarts),
        now=now,
    )
    stages = () if deployment.spec.paused else tuple(filter(None, map(tuple, _stages(step))))
    return Plan(
        update_revision=update,
        serving_revision=step.serving,
        stages=stages,
        restarts=step.restarts,
        wake_at=min((at for at in step.wakes if at > now), default=None),
    )


def serving_revision(deployment: Deployment, observed: Observed, *, update: str) -> str:
    """Where clients are sent now; empty before anything serves.

    Without a Service of ours (router external or none) it is the oldest thing still standing:
    the other revision while there is one, since it goes only after the update is proven.
    """
    if deployment.spec.router.type == "sglang":
        service = observed.services.get(deployment.name)
        return service.revision if service else ""
    others = sorted(_revisions(observed) - {update})
    return others[0] if others else update


def restart_policy(deployment: Deployment) -> Policy:
    restart = deployment.spec.restart
    return Policy(
        base_s=duration_seconds(restart.base_delay),
        limit_s=duration_seconds(restart.max_delay),
        most=restart.max_restarts,
        reset_s=duration_seconds(restart.reset_after),
    )


def groups_wanted(deployment: Deployment) -> int:
    return sum(deployment.spec.role(role).replicas for role in names.ROLES)


def group_ready(pods: Iterable[PodRecord], *, size: int) -> bool:
    """Every rank is there and ready; one that is being deleted counts no more."""
    ready = {pod.rank for pod in pods if pod.ready and not pod.deleting}
    return ready >= set(range(size))


def ready_groups(deployment: Deployment, observed: Observed, *, role: str, revision: str) -> int:
    spec = deployment.spec.role(role)
    pods = observed.role_pods(role, revision=revision)
    return sum(
        group_ready((pod for pod in pods if pod.group == group), size=spec.nodes_per_replica)
        for group in range(spec.replicas)
    )


def _revisions(observed: Observed) -> set[str]:
    pods = {pod.revision for pod in observed.pods.values()}
    peers = {s.revision for s in observed.services.values() if s.role in names.ROLES}
    return (pods | peers | {router.revision for router in observed.routers.values()}) - {""}


def _stages(step: _Pass) -> Iterator[Iterable[Intent]]:
    yield _peer_services(step)
    yield _key(step)
    yield (*_pods(step), *_router(step))
    yield _client_service(step)
    yield _surplus(step)
    yield _outdated(step)


def _peer_services(step: _Pass) -> Iterator[Intent]:
    for role in names.ROLES:
        body = render.peer_service(step.deployment, role=role, revision=step.update)
        yield from _applied(Kind.SERVICE, body, step.observed.services)


def _key(step: _Pass) -> Iterator[Intent]:
    """Asked again until this process has seen it made, or pods run with it: the Secret itself is
    not ours to read, and one left by a deleted resource of this name is about to vanish.
    """
    if step.update in step.keys or groups_wanted(step.deployment) == 0:
        return
    started = [
        pod.agent is not None and pod.agent.running
        for role in names.ROLES
        for pod in step.observed.role_pods(role, revision=step.update)
    ]
    if all(started) and len(started) >= _pods_wanted(step.deployment):
        return
    yield EnsureKey(
        name=names.key_secret_name(step.deployment.name, revision=step.update),
        revision=step.update,
        service=names.role_service_name(
            step.deployment.name, role=names.PREFILL, revision=step.update
        ),
        reason="pods of the revision need it to start",
    )


def _pods_wanted(deployment: Deployment) -> int:
    specs = [deployment.spec.role(role) for role in names.ROLES]
    return sum(spec.replicas * spec.nodes_per_replica for spec in specs)


def _pods(step: _Pass) -> Iterator[Intent]:
    for role in names.ROLES:
        spec = step.deployment.spec.role(role)
        for group in range(spec.replicas):
            yield from _group(step, role=role, group=group, size=spec.nodes_per_replica)


def _pod_name(step: _Pass, *, role: str, group: int, rank: int) -> str:
    return names.pod_name(
        step.deployment.name, role=role, revision=step.update, group=group, rank=rank
    )


def _group(step: _Pass, *, role: str, group: int, size: int) -> Iterator[Intent]:
    found = {
        rank: step.observed.pods.get(_pod_name(step, role=role, group=group, rank=rank))
        for rank in range(size)
    }
    members = Group(size=size, pods={rank: pod for rank, pod in found.items() if pod is not None})
    yield from _freed(step, members)
    reason = broken(members, now=step.now)
    if reason:
        yield from _torn_down(step, members, key=(role, group), reason=reason)
        return
    _forgive(step, members, key=(role, group))
    # A group that is on its way out comes back as a whole.
    if members.missing and not any(pod.deleting for pod in members.pods.values()):
        yield from _made(step, members, role=role, group=group)


def _freed(step: _Pass, members: Group) -> Iterator[Intent]:
    for pod in members.pods.values():
        if stuck(pod, now=step.now):
            reason = "still there long after its grace period: its node is dead"
            yield replace(_deleted(pod, reason), force=True)
        elif pod.deleted_at is not None:
            step.wakes.append(pod.deleted_at + STUCK_S)


def _torn_down(
    step: _Pass, members: Group, *, key: tuple[str, int], reason: str
) -> Iterator[Intent]:
    living = [pod for pod in members.pods.values() if not pod.deleting]
    if living:
        known = step.restarts.get(key)
        count = known.count + 1 if known else 1
        step.restarts[key] = Restart(count=count, at=step.now, reason=reason)
    for pod in living:
        yield replace(_deleted(pod, reason), ended=True)


def _forgive(step: _Pass, members: Group, *, key: tuple[str, int]) -> None:
    known = step.restarts.get(key)
    if known is not None and members.whole:
        until = known.at + step.policy.reset_s
        step.wakes.append(until)
        if step.now >= until:
            del step.restarts[key]


def _made(step: _Pass, members: Group, *, role: str, group: int) -> Iterator[Intent]:
    known = step.restarts.get((role, group))
    due = known.due_at(step.policy) if known else step.now
    if due is None:
        return
    if due > step.now:
        step.wakes.append(due)
        return
    if members.pods:
        step.wakes.append(members.forming_until())
    for rank in members.missing:
        body = render.pod(
            step.deployment,
            role=role,
            group=group,
            rank=rank,
            revision=step.update,
            images=step.images,
        )
        yield CreatePod(name=body["metadata"]["name"], body=body, reason="missing")


def _router(step: _Pass) -> Iterator[Intent]:
    if step.routed:
        body = render.router_deployment(step.deployment, revision=step.update, images=step.images)
        yield from _applied(Kind.DEPLOYMENT, body, step.observed.routers)
    elif step.router is not None:
        yield _gone(Kind.DEPLOYMENT, step.router, "no router is asked for")


def _client_service(step: _Pass) -> Iterator[Intent]:
    service = step.observed.services.get(step.deployment.name)
    if not step.routed:
        if service is not None and service.role not in names.ROLES:
            yield _gone(Kind.SERVICE, service, "no router is asked for")
    elif step.serving in {"", step.update} or proven(step):
        body = render.router_service(step.deployment, revision=step.update)
        yield from _applied(Kind.SERVICE, body, step.observed.services)


def proven(step: _Pass) -> bool:
    """Every group of the update is ready, and so is its router."""
    complete = all(
        ready_groups(step.deployment, step.observed, role=role, revision=step.update)
        == step.deployment.spec.role(role).replicas
        for role in names.ROLES
    )
    return complete and (not step.routed or _router_settled(step))


def _router_settled(step: _Pass) -> bool:
    return step.router is not None and step.router.settled


def _surplus(step: _Pass) -> Iterator[Intent]:
    """Groups above the wanted number, once no running router sends to them any more."""
    if _router_outdated(step):
        return
    for role in names.ROLES:
        replicas = step.deployment.spec.role(role).replicas
        for pod in step.observed.role_pods(role, revision=step.update):
            if not 0 <= pod.group < replicas and not pod.deleting:
                yield _deleted(pod, f"{role} has {replicas} replicas")


def _router_outdated(step: _Pass) -> bool:
    """A router is up that does not run the newest list of workers. A router that never came up
    holds nothing back.
    """
    router = step.router
    if router is None or router.ready == 0 or not step.routed:
        return False
    return not router.settled or any(True for _ in _router(step))


def _outdated(step: _Pass) -> Iterator[Intent]:
    kept = {step.update}
    if step.serving and step.serving != step.update:
        done = not step.routed and proven(step)
        kept |= set() if done else {step.serving}
    for router in step.observed.routers.values():
        if router.revision not in kept:
            yield _gone(Kind.DEPLOYMENT, router, f"revision {router.revision} is over")
    for pod in step.observed.pods.values():
        if pod.role in names.ROLES and pod.revision not in kept and not pod.deleting:
            yield _deleted(pod, f"revision {pod.revision} is over")
    for service in step.observed.services.values():
        if service.role in names.ROLES and service.revision not in kept:
            yield _gone(Kind.SERVICE, service, f"revision {service.revision} is over")


def _applied(
    kind: Kind, body: Json, known: Mapping[str, ServiceRecord] | Mapping[str, RouterRecord]
) -> Iterator[Intent]:
    name = body["metadata"]["name"]
    record = known.get(name)
    if record is None:
        yield Apply(kind=kind, name=name, body=body, reason="missing")
    elif record.intent != body["metadata"]["annotations"][names.ANNOTATION_INTENT]:
        yield Apply(kind=kind, name=name, body=body, reason="the intent changed")
    elif not holds(record.spec, body["spec"]):
        yield Apply(kind=kind, name=name, body=body, reason="somebody changed it")


def holds(live: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; what the server or others added does not matter.

    Lists of named entries are compared by name, other lists in full: that is how server-side
    apply merges the lists that we send.
    """
    if isinstance(wanted, Mapping):
        # The server leaves empty values out when it answers.
        return isinstance(live, Mapping) and all(
            holds(live[key], item) if key in live else not item for key, item in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return False
        if wanted and all(isinstance(item, Mapping) and "name" in item for item in wanted):
            named = {item.get("name"): item for item in live}
            return all(
                item["name"] in named and holds(named[item["name"]], item) for item in wanted
            )
        return len(live) == len(wanted) and all(map(holds, live, wanted))
    return bool(live == wanted)


def _deleted(pod: PodRecord, reason: str) -> Delete:
    return Delete(kind=Kind.POD, name=pod.name, uid=pod.uid, reason=reason)


def _gone(kind: Kind, record: ServiceRecord | RouterRecord, reason: str) -> Delete:
    return Delete(kind=kind, name=record.name, uid=record.uid, reason=reason)
