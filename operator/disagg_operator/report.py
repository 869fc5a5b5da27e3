"""The status of a resource from everything that is known at one moment: pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.api.status import (
    Condition,
    DisaggDeploymentStatus,
    KeysStatus,
    RolloutStatus,
    RouterStatus,
)
from disagg_operator.diagnose import refresh_finding, role_finding, router_finding
from disagg_operator.fabric import fabric_finding
from disagg_operator.finding import Finding, Weight
from disagg_operator.kinds import Json, ObjectReference
from disagg_operator.observe import AgentView, Observed
from disagg_operator.plan import Plan
from disagg_operator.preflight import preflight_finding, preflight_status
from disagg_operator.progress import Progress
from disagg_operator.render.routers import router_url
from disagg_operator.role_status import role_status
from disagg_operator.rotation import Keys
from disagg_operator.served import Ledger
from disagg_operator.step import pods_wanted
from disagg_operator.tally import Tally
from disagg_operator.timestamps import seconds, timestamp_s
from disagg_operator.transfers import Traffic, transfer_finding, transfer_status

# The API server refuses longer ones; a message beyond a screen helps nobody.
MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a status is made from. `error` is why the last plan could not be carried out."""

    deployment: Deployment
    observed: Observed
    plan: Plan
    keys: Keys | None
    views: Mapping[str, AgentView]
    tally: Tally
    ledger: Ledger
    previous: DisaggDeploymentStatus
    error: Finding | None
    now: float

    @property
    def traffic(self) -> Traffic:
        rows = self.previous.transfer.state_types if self.previous.transfer else ()
        return Traffic(
            observed=self.observed,
            views=self.views,
            tally=self.tally,
            ledger=self.ledger,
            told=self._told(names.TRANSFER_HEALTHY),
            previous={row.type: row for row in rows},
            now=self.now,
        )

    def _told(self, kind: str) -> Condition | None:
        """The condition as it stands, if it is of the revision that serves now."""
        if self.previous.current_revision != self.plan.serving_revision:
            return None
        return next((item for item in self.previous.conditions if item.type == kind), None)


def parse_status(body: Mapping[str, object]) -> DisaggDeploymentStatus:
    """The status found in the object; one that another version wrote counts as none."""
    try:
        return DisaggDeploymentStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return DisaggDeploymentStatus()


def status_object(status: DisaggDeploymentStatus, *, resource: ObjectReference) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        # The uid makes the server refuse it for another object of the same name.
        "metadata": {
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "status": status.to_object(),
    }


def status_of(moment: Moment) -> DisaggDeploymentStatus:
    findings = _findings(moment)
    ready = findings[names.READY]
    deployment, plan = moment.deployment, moment.plan
    transfer = transfer_status(
        moment.traffic,
        state_types=deployment.spec.model.state_types,
        expected=pods_wanted(deployment),
    )
    roles = [
        role_status(moment.deployment, moment.observed, moment.plan, role=role)
        for role in names.ROLES
    ]
    return DisaggDeploymentStatus(
        observed_generation=deployment.generation,
        phase=_phase(moment, findings, groups=sum(role.ready for role in roles)),
        current_revision=plan.serving_revision,
        update_revision=plan.update_revision,
        url=router_url(deployment),
        prefill=f"{roles[0].ready}/{roles[0].desired}",
        decode=f"{roles[1].ready}/{roles[1].desired}",
        transport=transfer.transport,
        reason=ready.reason,
        message=ready.message[:MESSAGE_LIMIT],
        roles=tuple(roles),
        rollout=_rollout(plan.progress),
        router=_router(moment),
        transfer=transfer,
        keys=_keys(moment.keys),
        preflight=preflight_status(
            moment.views, moment.observed, previous=moment.previous.preflight
        ),
        conditions=_conditions(findings, moment),
    )


def refused_status(
    previous: DisaggDeploymentStatus, *, problem: str, generation: int, now: float
) -> DisaggDeploymentStatus:
    """For a spec that this operator cannot read: what runs is left alone."""
    refused = Finding(truth="False", reason=names.REASON_INVALID_SPEC, message=problem)
    findings = {names.READY: refused, names.SPEC_VALID: refused}
    status = _overlaid(previous, findings, generation=generation, now=now)
    return status.model_copy(update={"phase": names.PHASE_FAILED})


def broken_status(
    previous: DisaggDeploymentStatus, *, problem: str, generation: int, now: float
) -> DisaggDeploymentStatus:
    """For a pass that ended in an error nobody foresaw."""
    reason = names.REASON_RECONCILE_ERROR
    findings = {
        names.READY: Finding(truth="False", reason=reason, message=problem),
        names.DEGRADED: Finding(truth="True", reason=reason, message=problem),
    }
    status = _overlaid(previous, findings, generation=generation, now=now)
    return status.model_copy(update={"phase": names.PHASE_DEGRADED})


def _overlaid(
    previous: DisaggDeploymentStatus,
    findings: Mapping[str, Finding],
    *,
    generation: int,
    now: float,
) -> DisaggDeploymentStatus:
    """The status that was there, with these conditions in it; nothing newer is known."""
    fresh = _listed(findings, previous, generation=generation, now=now)
    kept = tuple(item for item in previous.conditions if item.type not in findings)
    ready = findings[names.READY]
    return previous.model_copy(
        update={
            "observed_generation": generation,
            "reason": ready.reason,
            "message": ready.message[:MESSAGE_LIMIT],
            "conditions": (*fresh, *kept),
        }
    )


def _findings(moment: Moment) -> dict[str, Finding]:
    deployment, observed = moment.deployment, moment.observed
    revision = moment.plan.update_revision
    findings = {
        names.PREFILL_READY: role_finding(
            deployment,
            observed,
            moment.views,
            role=names.PREFILL,
            revision=revision,
            restarts=moment.plan.restarts,
        ),
        names.DECODE_READY: role_finding(
            deployment,
            observed,
            moment.views,
            role=names.DECODE,
            revision=revision,
            restarts=moment.plan.restarts,
        ),
        names.ROUTER_READY: router_finding(deployment, observed, revision=_routed(moment)),
        names.TRANSFER_HEALTHY: transfer_finding(moment.traffic),
    }
    if deployment.spec.transfer.preflight.mode != "Off":
        findings[names.PREFLIGHT_PASSED] = preflight_finding(moment.views, observed)
    fabric = fabric_finding(deployment, moment.views, observed)
    if fabric is not None:
        findings[names.FABRIC_READY] = fabric
    if moment.plan.progress is not None:
        findings[names.PROGRESSING] = _progressing(moment, moment.plan.progress)
    if moment.error is not None:
        findings[names.DEGRADED] = moment.error
    return {names.READY: _ready(moment, findings), **findings}


def _ready(moment: Moment, findings: Mapping[str, Finding]) -> Finding:
    """The reason nearest to the root cause of all that is not as it should be."""
    if moment.error is not None:
        return Finding(truth="False", reason=moment.error.reason, message=moment.error.message)
    wrong = [
        finding
        for finding in findings.values()
        if finding.truth == "False" and finding.weight is not Weight.NONE
    ]
    wrong += _rolling_out(moment)
    if not wrong:
        return Finding(truth="True", reason=names.REASON_READY, message=_summary(moment))
    worst = min(wrong, key=lambda finding: finding.weight)
    if moment.deployment.spec.paused:
        message = f"spec.paused is true, so nothing is changed; {worst.message}"
        return Finding(truth="False", reason=names.REASON_PAUSED, message=message)
    return Finding(truth="False", reason=worst.reason, message=worst.message)


def _progressing(moment: Moment, progress: Progress) -> Finding:
    counted = f"revision {progress.target}: {progress.step} of {progress.steps} steps are ready"
    if not progress.stalled:
        return Finding(truth="True", reason=names.REASON_ROLLING_OUT, message=counted)
    deadline = moment.deployment.spec.rollout.progress_deadline
    return Finding(
        truth="False",
        reason=names.REASON_PROGRESS_DEADLINE,
        message=f"{counted}, and no further one since {timestamp_s(progress.since)}"
        f" (spec.rollout.progressDeadline is {deadline}); what serves is left as it is: correct the"
        " spec, or apply the old one again",
        weight=Weight.MISSING,
    )


def _rollout(progress: Progress | None) -> RolloutStatus | None:
    if progress is None:
        return None
    return RolloutStatus(
        revision=progress.target,
        step=progress.step,
        steps=progress.steps,
        progress_time=timestamp_s(progress.since),
    )


def _keys(keys: Keys | None) -> KeysStatus | None:
    if keys is None:
        return None
    return KeysStatus(generation=keys.generation, key=keys.key, time=timestamp_s(keys.since))


def keys_of(previous: DisaggDeploymentStatus) -> Keys | None:
    """What the status says that pods have."""
    known = previous.keys
    if known is None:
        return None
    return Keys(generation=known.generation, key=known.key, since=seconds(known.time))


def progress_of(previous: DisaggDeploymentStatus) -> Progress | None:
    """How far the status says that its revision had come."""
    known = previous.rollout
    if known is None:
        return None
    return Progress(
        target=known.revision,
        step=known.step,
        steps=known.steps,
        since=seconds(known.progress_time),
    )


def _rolling_out(moment: Moment) -> list[Finding]:
    plan = moment.plan
    if plan.serving_revision == plan.update_revision:
        return list(_refreshing(moment))
    message = (
        f"revision {plan.serving_revision or 'none'} serves until revision"
        f" {plan.update_revision} is ready"
    )
    return [
        Finding(
            truth="False",
            reason=names.REASON_ROLLING_OUT,
            message=message,
            weight=Weight.CONSEQUENCE,
        )
    ]


def _refreshing(moment: Moment) -> Iterator[Finding]:
    for role, one in moment.plan.refreshes.items():
        if one.active:
            yield refresh_finding(
                moment.deployment,
                moment.observed,
                moment.views,
                role=role,
                revision=moment.plan.update_revision,
                refresh=one,
            )


def _summary(moment: Moment) -> str:
    return f"revision {moment.plan.update_revision} serves"


def _phase(moment: Moment, findings: Mapping[str, Finding], *, groups: int) -> str:
    """`groups` of both roles are ready."""
    if moment.deployment.spec.paused:
        return names.PHASE_PAUSED
    if findings[names.READY].truth == "True":
        return names.PHASE_READY
    broken = any(f.truth == "False" and f.weight <= Weight.AGENT for f in findings.values())
    parts = (names.PREFILL_READY, names.DECODE_READY, names.ROUTER_READY)
    built = all(findings[part].truth == "True" for part in parts)
    if moment.error is not None or broken or (built and not _rolling_out(moment)):
        return names.PHASE_DEGRADED
    fresh = moment.previous.phase == names.PHASE_PENDING and groups == 0
    return names.PHASE_PENDING if fresh else names.PHASE_PROGRESSING


def _routed(moment: Moment) -> str:
    """The revision whose router to look at: the update's once it has one."""
    update, serving = moment.plan.update_revision, moment.plan.serving_revision
    own = names.router_name(moment.deployment.name, revision=update)
    return update if own in moment.observed.routers or not serving else serving


def _router(moment: Moment) -> RouterStatus | None:
    spec = moment.deployment.spec.router
    if spec.type != "sglang":
        return None
    name = names.router_name(moment.deployment.name, revision=_routed(moment))
    record = moment.observed.routers.get(name)
    desired = record.desired if record is not None else spec.replicas
    return RouterStatus(desired=desired, ready=record.ready if record is not None else 0)


def _conditions(findings: Mapping[str, Finding], moment: Moment) -> tuple[Condition, ...]:
    return _listed(
        findings, moment.previous, generation=moment.deployment.generation, now=moment.now
    )


def _listed(
    findings: Mapping[str, Finding],
    previous: DisaggDeploymentStatus,
    *,
    generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """`lastTransitionTime` moves only when the condition's status does."""
    known = {condition.type: condition for condition in previous.conditions}
    return tuple(
        Condition(
            type=kind,
            status=finding.truth,
            observed_generation=generation,
            last_transition_time=_since(known.get(kind), finding, now=now),
            reason=finding.reason,
            message=finding.message[:MESSAGE_LIMIT],
        )
        for kind, finding in findings.items()
    )


def _since(known: Condition | None, finding: Finding, *, now: float) -> str:
    if known is not None and known.status == finding.truth:
        return known.last_transition_time
    return timestamp_s(now)
