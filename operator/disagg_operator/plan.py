"""What to do next, from the resource and one observation: pure.

Two revisions live side by side during a rollout. `update` is the one that the spec asks for and
the only one that can still be rendered. Each has a router of its own, with workers of its own, and
the client Service leads to every router that is ready: so no request pairs two revisions, and the
new one takes its share as soon as it has a ready group of each role. `rollout` says how many groups
of either there may be, `retire` in what order the old ones go.

Level-triggered: nothing here knows what happened before, but for what the status tells (restarts,
and since when a rollout stands still). A converged resource gives an empty plan.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from disagg_operator import names, render
from disagg_operator.api.resource import Deployment
from disagg_operator.drift import applied
from disagg_operator.gangs import gang_intents
from disagg_operator.gates import gate_intents
from disagg_operator.intents import Intent, WriteKeys
from disagg_operator.kinds import Json, Kind
from disagg_operator.members import group_intents
from disagg_operator.observe import AgentView, Observed, ServiceRecord
from disagg_operator.progress import Progress, deadline_s, progress_now
from disagg_operator.refresh import refresh, refreshed
from disagg_operator.render import Images
from disagg_operator.retire import retired, side
from disagg_operator.rollout import Refresh, RoleCounts, Side, Targets, advance
from disagg_operator.root_key import RootKey
from disagg_operator.rotation import Keys, generation_due, generation_of, keys_after
from disagg_operator.scaling import scaler_intents
from disagg_operator.step import (
    Restarts,
    Step,
    deleted,
    draining,
    gone,
    groups_wanted,
    is_routed,
    ready_among,
    revisions,
    rollout_bounds,
)

# A kubelet mounts a Secret within seconds; longer than this, it may not be there.
MISSING_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order; the intents of one stage do not depend on one another."""

    update_revision: str
    serving_revision: str
    stages: tuple[tuple[Intent, ...], ...]
    restarts: Restarts = field(default_factory=dict)  # after this plan, of the update revision
    progress: Progress | None = None  # None once a revision is alone and whole
    refreshes: Mapping[str, Refresh] = field(default_factory=dict)
    wake_at: float | None = None  # when time alone changes the plan

    @property
    def intents(self) -> tuple[Intent, ...]:
        return tuple(intent for stage in self.stages for intent in stage)

    def keys_after(
        self,
        before: Keys | None,
        *,
        written: Mapping[str, str],
        kept: Collection[str],
        now: float,
    ) -> Keys | None:
        asked = {i.revision: i.generation for i in self.intents if isinstance(i, WriteKeys)}
        return keys_after(
            before,
            update=self.update_revision,
            asked=asked,
            written=written,
            kept=kept,
            now=now,
        )


def decide(
    deployment: Deployment,
    observed: Observed,
    *,
    images: Images,
    keys: Keys | None,
    keys_at: float,
    root: RootKey,
    restarts: Restarts,
    progress: Progress | None,
    views: Mapping[str, AgentView],
    now: float,
    gangs: frozenset[str] = frozenset(),
) -> Plan:
    """`keys`, `restarts` and `progress` are those of the update revision that the status tells of."""
    update = render.revision(deployment, images=images)
    roles = {role: _counts(deployment, observed, role=role, update=update) for role in names.ROLES}
    reached = advance(roles, skew=deployment.spec.rollout.max_skew)
    alone = not any(role.old.present for role in roles.values())
    refreshes = _refreshes(deployment, observed, update=update, held=not alone)
    present = progress_now(
        deployment, roles, refreshes, reached=reached, update=update, before=progress, now=now
    )
    if present is not None and present.stalled:
        refreshes = _refreshes(deployment, observed, update=update, held=True)
    step = Step(
        deployment=deployment,
        observed=observed,
        images=images,
        keys=keys,
        keys_at=keys_at,
        root=root,
        gangs=gangs,
        update=update,
        targets=_targets(deployment, roles, present),
        refreshes=refreshes,
        restarts=dict(restarts),
        views=views,
        now=now,
    )
    if present is not None and not present.stalled:
        step.wakes.append(present.since + deadline_s(deployment))
    stages = () if deployment.spec.paused else tuple(filter(None, map(tuple, _stages(step))))
    return Plan(
        update_revision=update,
        serving_revision=serving_revision(deployment, observed, update=update),
        stages=stages,
        restarts=step.restarts,
        progress=present,
        refreshes=refreshes,
        wake_at=min((at for at in step.wakes if at > now), default=None),
    )


def _refreshes(
    deployment: Deployment, observed: Observed, *, update: str, held: bool
) -> dict[str, Refresh]:
    return {
        role: refresh(deployment, observed, role=role, update=update, held=held)
        for role in names.ROLES
    }


def serving_revision(deployment: Deployment, observed: Observed, *, update: str) -> str:
    """Where clients are sent; of two, the one that will go. Empty before anything is there."""
    others = revisions(observed) - {update}
    serving = sorted(
        (-side(deployment, observed, role=names.DECODE, revision=other).serving, other)
        for other in others
    )
    if serving and serving[0][0]:
        return serving[0][1]
    if not is_routed(deployment):
        return update
    return update if observed.services.get(deployment.name) else ""


def _counts(deployment: Deployment, observed: Observed, *, role: str, update: str) -> RoleCounts:
    wanted = deployment.spec.role(role).replicas
    surge, unavailable = rollout_bounds(deployment, role=role)
    old = [
        side(deployment, observed, role=role, revision=other)
        for other in revisions(observed) - {update}
    ]
    ready = ready_among(deployment, observed, role=role, revision=update)
    return RoleCounts(
        desired=wanted,
        surge=surge,
        unavailable=unavailable,
        old=Side(present=sum(one.present for one in old), serving=sum(one.serving for one in old)),
        new=side(deployment, observed, role=role, revision=update),
        new_ready=sum(group < wanted for group in ready),
    )


def _targets(
    deployment: Deployment, roles: dict[str, RoleCounts], progress: Progress | None
) -> Targets:
    targets = advance(
        roles,
        skew=deployment.spec.rollout.max_skew,
        stalled=progress is not None and progress.stalled,
    )
    if deployment.spec.rollout.strategy == "Coherent":
        return targets
    clear = not any(role.old.present for role in roles.values())
    none = dict.fromkeys(roles, 0)
    return Targets(
        new=targets.new if clear else none, old=none, step=targets.step, steps=targets.steps
    )


def _stages(step: Step) -> Iterator[Iterable[Intent]]:
    yield _peer_services(step)
    yield _keys(step)
    yield _gangs(step)
    yield (*_pods(step), *_router(step))
    yield _client_service(step)
    yield _guards(step)
    yield _surplus(step)
    yield refreshed(step, router_outdated=_router_outdated(step))
    yield retired(step)
    yield scaler_intents(step)
    yield gate_intents(step)


def _peer_services(step: Step) -> Iterator[Intent]:
    for role in names.ROLES:
        body = render.peer_service(step.deployment, role=role, revision=step.update)
        yield from applied(Kind.SERVICE, body, step.observed.services)


def _keys(step: Step) -> Iterator[Intent]:
    """Where the newest key that the status names is not the one that we would make now: of a new
    revision, of a new generation, or after another root key.
    """
    if groups_wanted(step.deployment) == 0:
        return
    rotation = step.deployment.spec.transfer.key_rotation
    generation = generation_due(step.keys, rotation=rotation, now=step.now)
    due_at = step.keys.due_at(rotation) if step.keys else None
    if due_at is not None:
        step.wakes.append(due_at)
    if generation != generation_of(step.keys):
        for revision in sorted(revisions(step.observed) - {step.update}):
            if _key_owner(step, revision) is not None:
                yield _write_keys(step, revision, generation, "a rotation is due")
    owner, known = _key_owner(step, step.update), step.keys.key if step.keys else ""
    if owner is None or step.root.key_id(owner.uid, generation=generation) != known:
        reason = "pods of the revision need them to start"
        if known and generation != generation_of(step.keys):
            reason = "a rotation is due"
        yield _write_keys(step, step.update, generation, reason)
    elif _await_volumes(step):
        again_at = step.keys_at + MISSING_AFTER_S
        step.wakes.append(again_at)
        if step.now >= again_at:
            reason = "pods wait for their volumes: the Secret may have been deleted"
            yield _write_keys(step, step.update, generation, reason)


def _await_volumes(step: Step) -> bool:
    """A pod has a node for long, and its first container was never started: not ours to see why."""
    waiting = [
        pod.created_at + MISSING_AFTER_S
        for role in names.ROLES
        for pod in step.observed.role_pods(role, revision=step.update)
        if pod.node and not pod.deleting and (pod.agent is None or pod.agent.uncreated)
    ]
    step.wakes.extend(waiting)
    return any(step.now >= at for at in waiting)


def _key_owner(step: Step, revision: str) -> ServiceRecord | None:
    return step.observed.services.get(_key_service(step, revision))


def _key_service(step: Step, revision: str) -> str:
    return names.role_service_name(step.deployment.name, role=names.PREFILL, revision=revision)


def _write_keys(step: Step, revision: str, generation: int, reason: str) -> WriteKeys:
    return WriteKeys(
        name=names.key_secret_name(step.deployment.name, revision=revision),
        revision=revision,
        service=_key_service(step, revision),
        generation=generation,
        reason=reason,
    )


def _gangs(step: Step) -> Iterator[Intent]:
    for role, group in _groups(step):
        yield from gang_intents(step, role=role, group=group)


def _pods(step: Step) -> Iterator[Intent]:
    for role, group in _groups(step):
        yield from group_intents(step, role=role, group=group)


def _groups(step: Step) -> Iterator[tuple[str, int]]:
    for role in names.ROLES:
        for group in (*range(step.targets.new[role]), *step.refreshes[role].surge):
            yield role, group


def _router(step: Step) -> Iterator[Intent]:
    """Beside another revision it waits for a ready group of each role: it takes requests at once."""
    if step.routed:
        alone = not any(step.targets.old.values()) or step.targets.steps == 0
        if alone or step.router is not None or step.targets.step > 0:
            body = render.router_deployment(
                step.deployment,
                revision=step.update,
                images=step.images,
                groups={role: one.routed for role, one in step.refreshes.items()},
            )
            yield from applied(Kind.DEPLOYMENT, body, step.observed.routers)
    elif step.router is not None:
        yield gone(Kind.DEPLOYMENT, step.router, "no router is asked for")


def _client_service(step: Step) -> Iterator[Intent]:
    service = step.observed.services.get(step.deployment.name)
    if step.routed:
        body = render.router_service(step.deployment)
        yield from applied(Kind.SERVICE, body, step.observed.services)
    elif service is not None and service.role not in names.ROLES:
        yield gone(Kind.SERVICE, service, "no router is asked for")


def _guards(step: Step) -> Iterator[Intent]:
    deployment = step.deployment
    wanted: dict[str, tuple[Kind, Json]] = {}
    if deployment.spec.disruption.budget == "Group":
        budgets = [render.disruption_budget(deployment, role=role) for role in names.ROLES]
        wanted |= {body["metadata"]["name"]: (Kind.DISRUPTION_BUDGET, body) for body in budgets}
    if deployment.spec.network_policy == "Enabled":
        policies = [render.role_policy(deployment)]
        policies += [render.router_policy(deployment)] if step.routed else []
        wanted |= {body["metadata"]["name"]: (Kind.NETWORK_POLICY, body) for body in policies}
    for kind, body in wanted.values():
        yield from applied(kind, body, step.observed.guards)
    for name, record in step.observed.guards.items():
        if name not in wanted:
            yield gone(record.kind, record, "it is not asked for")


def _surplus(step: Step) -> Iterator[Intent]:
    """Groups above the wanted number, once no running router sends to them any more."""
    if _router_outdated(step):
        return
    for role, one in step.refreshes.items():
        for pod in step.observed.role_pods(role, revision=step.update):
            if pod.group not in one.groups and not pod.deleting:
                yield deleted(pod, f"{role} has {one.asked} replicas")


def _router_outdated(step: Step) -> bool:
    """A router is up that does not run the newest list of workers, or ends with requests in hand.

    A router that never came up holds nothing back.
    """
    router = step.router
    if router is None or not step.routed:
        return False
    if draining(step.observed, revision=step.update):
        return True
    return router.ready > 0 and (not router.settled or any(True for _ in _router(step)))
