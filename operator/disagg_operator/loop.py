"""One resource's loop: wait, observe, decide, execute, report, again until it is deleted.

Whatever wakes it, a pass looks at everything and remembers nothing it could look up. What it does
remember (expectations, tallies, told events) only keeps it from doing things twice, and is lost
without harm.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from disagg_operator import names, served
from disagg_operator.api.resource import Deployment, InvalidDeploymentError, parse_deployment
from disagg_operator.api.status import DisaggDeploymentStatus
from disagg_operator.errors import ApiConflictError, ApiError, ApiForbiddenError, GangNotServedError
from disagg_operator.events import intent_news
from disagg_operator.execute import Execution, Outcome
from disagg_operator.expectations import Expectations
from disagg_operator.finding import Finding, Weight
from disagg_operator.first_ready import ReadyWait
from disagg_operator.kinds import ObjectReference
from disagg_operator.observe import Observed, PodRecord, observe
from disagg_operator.pacing import backoff_s
from disagg_operator.plan import Plan, decide, serving_revision
from disagg_operator.publish import Publisher
from disagg_operator.render import revision
from disagg_operator.report import (
    Moment,
    broken_status,
    keys_of,
    progress_of,
    refused_status,
    status_of,
)
from disagg_operator.reports import Target
from disagg_operator.role_status import restarts_of
from disagg_operator.rotation import Keys, generation_of
from disagg_operator.runtime import Runtime
from disagg_operator.scaling import scaled
from disagg_operator.sight import Snapshot
from disagg_operator.tally import Tally, advance
from disagg_operator.timestamps import seconds
from disagg_operator.transfers import next_change_s

ERROR_BASE_S = 1.0
ERROR_LIMIT_S = 60.0
# A name that was taken, of a key or a pod, may be that of an object on its way out: look again
# soon, then ever less often.
TAKEN_BASE_S = 5.0
logger = logging.getLogger(__name__)


class ResourceLoop:
    def __init__(
        self,
        *,
        runtime: Runtime,
        resource: ObjectReference,
        snapshot: Callable[[], Snapshot | None],
        stopped: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._resource = resource
        self._snapshot = snapshot
        self._stopped = stopped
        self._wake = runtime.wakeups.register(resource.owner)
        self._expectations = Expectations()
        self._gangs: frozenset[str] = frozenset()
        self._tally = Tally()
        self._ledger = served.Ledger()
        self._keys_at = -math.inf
        self._failures = 0
        self._undone = 0
        self._ready_wait = ReadyWait()
        self._publisher = Publisher(
            writer=runtime.gateway,
            resource=resource,
            instance=runtime.instance,
            clock=runtime.clock,
            resources=lambda: len(runtime.wakeups),
        )

    async def run(self) -> None:
        try:
            while not self._stopped():
                snapshot = self._snapshot()
                delay_s = self._runtime.settings.resync_s
                if snapshot is not None:
                    delay_s = await self._guarded_pass(snapshot)
                await self._sleep(delay_s)
        finally:
            owner = self._resource.owner
            self._runtime.feed.forget(owner)
            self._runtime.routers.forget(owner)
            self._runtime.metrics.statuses.pop(owner, None)
            self._runtime.wakeups.forget(owner, self._wake)
            self._runtime.wakeups.wake(owner)  # one of the same name asks for its agents again

    async def _sleep(self, delay_s: float) -> None:
        """Until woken or `delay_s` is over; then a moment more, for what comes together."""
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return
        if not self._stopped():
            await asyncio.sleep(self._runtime.settings.coalesce_s)
        self._wake.clear()

    async def _guarded_pass(self, snapshot: Snapshot) -> float:
        """The outermost guard: whatever goes wrong in a pass is told and tried again."""
        owner, started = self._resource.owner, self._runtime.clock()
        self._runtime.running[self._resource] = started
        try:
            return await self._pass(snapshot)
        except Exception as error:
            logger.exception("pass over %s/%s failed", *owner)
            return await self._tell_failure(error, snapshot.body)
        finally:
            del self._runtime.running[self._resource]
            self._runtime.metrics.pass_seconds.observe(self._runtime.clock() - started)

    async def _pass(self, snapshot: Snapshot) -> float:
        previous = self._publisher.previous(snapshot.body)
        try:
            deployment = parse_deployment(snapshot.body)
        except InvalidDeploymentError as error:
            return await self._refuse(snapshot, str(error), previous)
        observed = self._observed(snapshot)
        deployment = scaled(deployment, observed.scalers)
        plan, outcome = await self._carry_out(deployment, observed, previous)
        moment = self._moment(deployment, snapshot, plan, outcome, previous)
        status = status_of(moment)
        self._measure(status, moment, created=snapshot.body["metadata"].get("creationTimestamp"))
        pause_s = await self._publisher.publish(status, previous=previous)
        await self._publisher.tell(intent_news(outcome.done))
        return self._next_s(plan, outcome, moment, pause_s)

    async def _carry_out(
        self, deployment: Deployment, observed: Observed, previous: DisaggDeploymentStatus
    ) -> tuple[Plan, Outcome]:
        targets = self._targets(observed, keys_of(previous))
        self._runtime.feed.follow(self._resource.owner, targets)
        self._runtime.routers.follow(self._resource.owner, _routers(observed))
        images = self._runtime.images
        plan = decide(
            deployment,
            observed,
            images=images,
            keys=keys_of(previous),
            keys_at=self._keys_at,
            root=self._runtime.root,
            gangs=self._gangs,
            restarts=restarts_of(previous, revision=revision(deployment, images=images)),
            progress=progress_of(previous),
            views=self._runtime.feed.views(self._resource.owner),
            now=self._runtime.clock(),
        )
        execution = Execution(
            writer=self._runtime.gateway,
            deployment=deployment,
            observed=observed,
            expectations=self._expectations,
            clock=self._runtime.clock,
            root=self._runtime.root,
            stopped=self._stopped,
        )
        outcome = await execution.run(plan)
        if outcome.keys:
            self._keys_at = self._runtime.clock()
        self._gangs |= outcome.gangs
        self._count(outcome)
        return plan, outcome

    def _targets(self, observed: Observed, keys: Keys | None) -> dict[str, Target]:
        """Agents to ask, each with what opens the reports of its revision."""
        generation = generation_of(keys)
        tokens = {
            service.revision: self._runtime.root.report_token(service.uid, generation=generation)
            for service in observed.services.values()
            if service.role == names.PREFILL
        }
        return {
            pod.name: Target(uid=pod.uid, ip=pod.ip, token=tokens.get(pod.revision, ""))
            for pod in _answering(observed)
        }

    def _observed(self, snapshot: Snapshot) -> Observed:
        observed = observe(
            owner_uid=self._resource.uid,
            pods=snapshot.pods,
            services=snapshot.services,
            routers=snapshot.routers,
            guards=snapshot.guards,
            scalers=snapshot.scalers,
        )
        return self._expectations.overlay(observed, now=self._runtime.clock())

    def _count(self, outcome: Outcome) -> None:
        for intent in outcome.done:
            what = f"{type(intent).__name__} {intent.name}"
            logger.info("%s/%s: %s: %s", *self._resource.owner, what, intent.reason)
        for error in outcome.errors:
            logger.warning("%s/%s: %s", *self._resource.owner, error)
        result = "failed" if outcome.errors else "changed" if outcome.done else "unchanged"
        self._runtime.metrics.passes[result] += 1
        self._failures = self._failures + 1 if outcome.errors else 0

    def _measure(
        self, status: DisaggDeploymentStatus, moment: Moment, *, created: str | None
    ) -> None:
        metrics, previous = self._runtime.metrics, moment.previous
        metrics.statuses[self._resource.owner] = status
        waited_s = self._ready_wait.seconds(
            status,
            previous=previous,
            created_at=seconds(created) if created else moment.now,
            now=moment.now,
        )
        if waited_s is not None:
            metrics.ready_seconds.observe(waited_s)
        before = restarts_of(previous, revision=moment.plan.update_revision)
        for (role, group), restart in moment.plan.restarts.items():
            known = before.get((role, group))
            metrics.group_restarts[role] += max(0, restart.count - (known.count if known else 0))

    def _moment(
        self,
        deployment: Deployment,
        snapshot: Snapshot,
        plan: Plan,
        outcome: Outcome,
        previous: DisaggDeploymentStatus,
    ) -> Moment:
        observed = self._observed(snapshot)
        views = self._runtime.feed.views(self._resource.owner)
        self._tally = advance(
            self._tally,
            views,
            previous=previous.transfer.state_types if previous.transfer else (),
            complete=len(views) == len(_answering(observed)),
        )
        looks = self._runtime.routers.looks(self._resource.owner)
        self._ledger = served.advance(self._ledger, looks, views)
        serving = serving_revision(deployment, observed, update=plan.update_revision)
        return Moment(
            deployment=deployment,
            observed=observed,
            plan=replace(plan, serving_revision=serving),
            keys=plan.keys_after(
                keys_of(previous),
                written=outcome.keys,
                kept=outcome.kept,
                now=self._runtime.clock(),
            ),
            views=views,
            tally=self._tally,
            ledger=self._ledger,
            previous=previous,
            error=_error_finding(outcome.errors),
            now=self._runtime.clock(),
        )

    def _next_s(self, plan: Plan, outcome: Outcome, moment: Moment, pause_s: float | None) -> float:
        waits = [self._runtime.settings.resync_s, pause_s, next_change_s(moment.traffic)]
        deadline = self._expectations.next_deadline()
        if deadline is not None:
            waits.append(max(0.05, deadline - self._runtime.clock()))
        if plan.wake_at is not None:
            waits.append(max(0.05, plan.wake_at - self._runtime.clock()))
        if outcome.errors:
            waits.append(self._backoff_s())
        self._undone = self._undone + 1 if len(outcome.done) < len(plan.intents) else 0
        if self._undone:
            waits.append(self._again_s())
        return min(wait for wait in waits if wait is not None)

    def _again_s(self) -> float:
        limit_s = self._runtime.settings.resync_s
        return backoff_s(self._undone - 1, base_s=TAKEN_BASE_S, limit_s=limit_s, jitter=0.0)

    def _backoff_s(self) -> float:
        return backoff_s(self._failures - 1, base_s=ERROR_BASE_S, limit_s=ERROR_LIMIT_S, jitter=0.0)

    async def _refuse(
        self, snapshot: Snapshot, problem: str, previous: DisaggDeploymentStatus
    ) -> float:
        status = refused_status(
            previous,
            problem=problem,
            generation=snapshot.body["metadata"].get("generation", 0),
            now=self._runtime.clock(),
        )
        await self._publisher.publish(status, previous=previous)
        return self._runtime.settings.resync_s

    async def _tell_failure(self, error: Exception, body: Mapping[str, Any]) -> float:
        """A pass that broke: the status says so, if it can still be written."""
        self._failures += 1
        self._runtime.metrics.passes["failed"] += 1
        previous = self._publisher.previous(body)
        status = broken_status(
            previous,
            problem=f"{type(error).__name__}: {error}",
            generation=body["metadata"].get("generation", 0),
            now=self._runtime.clock(),
        )
        try:
            await self._publisher.publish(status, previous=previous)
        except ApiError as second:
            logger.warning("status of %s/%s not written: %s", *self._resource.owner, second)
        return self._backoff_s()


def _answering(observed: Observed) -> list[PodRecord]:
    """Pods whose agents can be asked."""
    return [
        pod
        for pod in observed.pods.values()
        if pod.role in names.ROLES
        and pod.ip
        and not pod.deleting
        and pod.agent is not None
        and pod.agent.running
    ]


def _routers(observed: Observed) -> dict[str, str]:
    return {
        pod.uid: pod.ip
        for pod in observed.pods.values()
        if pod.role == names.ROUTER and pod.ip and pod.ready and not pod.deleting
    }


def _error_finding(errors: list[ApiError]) -> Finding | None:
    """Conflicts are settled by looking again; everything else is told."""
    lasting = [error for error in errors if not isinstance(error, ApiConflictError)]
    if not lasting:
        return None
    reasons = {
        ApiForbiddenError: names.REASON_FORBIDDEN,
        GangNotServedError: names.REASON_GANG_NOT_SERVED,
    }
    return Finding(
        truth="True",
        reason=reasons.get(type(lasting[0]), names.REASON_RECONCILE_ERROR),
        message=str(lasting[0]),
        weight=Weight.NONE,
    )
