"""Why pods are not ready, root cause first: pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.finding import Finding, Weight
from disagg_operator.gates import held_pods, judged_pairs
from disagg_operator.observe import (
    CONFIG_REASONS,
    OOM_KILLED,
    PULL_REASONS,
    AgentView,
    ContainerRecord,
    Observed,
    PodRecord,
)
from disagg_operator.rollout import Refresh
from disagg_operator.step import Restarts, ready_groups, restart_policy
from disagg_operator.timestamps import timestamp_s
from disagg_transfer.contract import NotReady

# Reasons for which an agent waits only because the engine beside it is not up yet.
_WAITS_FOR_ENGINE = frozenset({NotReady.STARTING, NotReady.ENGINE_NOT_REGISTERED})


def role_finding(
    deployment: Deployment,
    observed: Observed,
    views: Mapping[str, AgentView],
    *,
    role: str,
    revision: str,
    restarts: Restarts,
) -> Finding:
    desired = deployment.spec.role(role).replicas
    if desired == 0:
        return Finding(
            truth="False",
            reason=names.REASON_NO_REPLICAS,
            message=f"spec.roles.{role}.replicas is 0; set it above 0 to serve",
            weight=Weight.MISSING,
        )
    ready = ready_groups(deployment, observed, role=role, revision=revision)
    counted = f"{ready} of {desired} {role} groups are ready"
    if ready == desired:
        return Finding(truth="True", reason=names.REASON_READY, message=counted)
    problems = _problems_of(
        deployment, observed, views, role=role, revision=revision, groups=range(desired)
    )
    held = _held_back(deployment, observed, restarts, role=role, revision=revision)
    worst = _worst([*problems, *held])
    return Finding(
        truth="False",
        reason=worst.reason,
        message=f"{counted}; {worst.message}",
        weight=worst.weight,
    )


def refresh_finding(
    deployment: Deployment,
    observed: Observed,
    views: Mapping[str, AgentView],
    *,
    role: str,
    revision: str,
    refresh: Refresh,
) -> Finding:
    """Of a role whose pods are made anew; what the further groups wait for comes with it."""
    counted = (
        f"{refresh.done} of {len(refresh.groups)} {role} groups are made from the newest template"
    )
    groups = refresh.surge
    problems = [
        *_problems_of(deployment, observed, views, role=role, revision=revision, groups=groups)
    ]
    if not problems:
        return _problem(names.REASON_ROLLING_OUT, counted, Weight.CONSEQUENCE)
    worst = _worst(problems)
    return _problem(worst.reason, f"{counted}; {worst.message}", worst.weight)


def router_finding(deployment: Deployment, observed: Observed, *, revision: str) -> Finding:
    router_type = deployment.spec.router.type
    if router_type != "sglang":
        return Finding(
            truth="True",
            reason=names.REASON_ROUTER_DISABLED,
            message=f"spec.router.type is {router_type}: the operator runs no router",
        )
    if not any(deployment.spec.role(role).replicas for role in names.ROLES):
        return _problem(
            names.REASON_NO_REPLICAS, "no router runs while both roles have 0 replicas",
            Weight.MISSING,
        )  # fmt: skip
    name = names.router_name(deployment.name, revision=revision)
    router = observed.routers.get(name)
    if router is not None and 0 < router.desired <= router.ready:
        text = f"{router.ready} of {router.desired} router pods are ready"
        return Finding(truth="True", reason=names.REASON_READY, message=text)
    pods = [p for p in observed.role_pods(names.ROUTER, revision=revision) if not p.deleting]
    problems = [_found(pod, None) or _starting(pod) for pod in pods if not pod.ready]
    causes = [p for p in problems if p.weight <= Weight.PLACEMENT]
    if causes:
        return _worst(iter(causes))
    detail = "is not created yet" if router is None else "has no ready pod"
    message = f"router {name} {detail}; it waits for ready prefill and decode pods"
    return _problem(names.REASON_ROUTER_UNAVAILABLE, message, Weight.CONSEQUENCE)


def _problems_of(
    deployment: Deployment,
    observed: Observed,
    views: Mapping[str, AgentView],
    *,
    role: str,
    revision: str,
    groups: Iterable[int],
) -> Iterator[Finding]:
    held = held_pods(judged_pairs(views, observed))
    for group in groups:
        for rank in range(deployment.spec.role(role).nodes_per_replica):
            name = names.pod_name(
                deployment.name, role=role, revision=revision, group=group, rank=rank
            )
            pod = observed.pods.get(name)
            if pod is None:
                message = f"pod {name} does not exist yet"
                yield _problem(names.REASON_PODS_MISSING, message, Weight.MISSING)
            elif pod.deleting:
                yield _leaving(pod)
            elif not pod.ready:
                found = _found(pod, views.get(name)) or _gate(pod, held) or _unreachable(pod)
                yield found or _starting(pod)


def _leaving(pod: PodRecord) -> Finding:
    if not pod.disruption:
        message = f"pod {pod.name} is terminating and will be replaced"
        return _problem(names.REASON_PODS_MISSING, message, Weight.MISSING)
    message = f"pod {pod.name} leaves node {pod.node} and will be replaced: {pod.disruption}"
    return _problem(names.REASON_POD_DISRUPTED, message, Weight.PLACEMENT)


def _held_back(
    deployment: Deployment, observed: Observed, restarts: Restarts, *, role: str, revision: str
) -> Iterator[Finding]:
    """Groups that are down and wait for their next try, or get none."""
    policy = restart_policy(deployment)
    for (known, group), restart in restarts.items():
        pods = [pod for pod in observed.role_pods(role, revision=revision) if pod.group == group]
        if known != role or any(not pod.deleting for pod in pods):
            continue
        due = restart.due_at(policy)
        told = f"{role} group {group} was replaced {restart.count} times, last because"
        if due is None:
            text = f"{told} {restart.reason}; spec.restart.maxRestarts is {policy.most}"
            yield _problem(names.REASON_RESTART_LIMIT, text, Weight.CRASH)
        elif restart.count > 1:
            text = f"{told} {restart.reason}; its pods are made again at {timestamp_s(due)}"
            yield _problem(names.REASON_RESTART_BACKOFF, text, Weight.CRASH)


def _worst(problems: Iterable[Finding]) -> Finding:
    return min(problems, key=lambda problem: (problem.weight, problem.message))


def _problem(reason: str, message: str, weight: Weight) -> Finding:
    return Finding(truth="False", reason=reason, message=message, weight=weight)


def _found(pod: PodRecord, view: AgentView | None) -> Finding | None:
    """The first cause that applies; each is tried on every container before the next."""
    return (
        _first(pod, _image, _memory, _config)
        or _refused(pod, view)
        or _first(pod, _crash)
        or _placement(pod)
        or _agent(pod, view)
    )


def _first(
    pod: PodRecord, *causes: Callable[[PodRecord, ContainerRecord], Finding | None]
) -> Finding | None:
    problems = (cause(pod, container) for cause in causes for container in pod.containers)
    return next((problem for problem in problems if problem is not None), None)


def _image(pod: PodRecord, container: ContainerRecord) -> Finding | None:
    if container.waiting_reason not in PULL_REASONS:
        return None
    message = (
        f"container {container.name} of pod {pod.name}: image {container.image}:"
        f" {container.waiting_reason}: {container.waiting_message}; correct the image or give"
        " spec.engine.imagePullSecrets"
    )
    return _problem(names.REASON_IMAGE_PULL_FAILED, message, Weight.IMAGE)


def _memory(pod: PodRecord, container: ContainerRecord) -> Finding | None:
    if container.running or container.exit_reason != OOM_KILLED:
        return None
    message = (
        f"container {container.name} of pod {pod.name} ran out of memory ({_restarts(container)});"
        " raise its memory limit"
    )
    return _problem(names.REASON_OOM_KILLED, message, Weight.MEMORY)


def _config(pod: PodRecord, container: ContainerRecord) -> Finding | None:
    if container.waiting_reason not in CONFIG_REASONS:
        return None
    message = (
        f"container {container.name} of pod {pod.name} cannot be started:"
        f" {container.waiting_reason}: {container.waiting_message}"
    )
    return _problem(names.REASON_CONTAINER_CONFIG, message, Weight.CONFIG)


def _crash(pod: PodRecord, container: ContainerRecord) -> Finding | None:
    ended = container.exit_code is not None and not container.running
    if not ended or (container.exit_code == 0 and not container.restarts):
        return None
    said = f": {container.exit_message}" if container.exit_message else ""
    message = (
        f"container {container.name} of pod {pod.name} ended with exit code"
        f" {container.exit_code} ({_restarts(container)}){said};"
        f" see kubectl logs {pod.name} -c {container.name} --previous"
    )
    return _problem(names.REASON_CONTAINER_CRASHED, message, Weight.CRASH)


def _restarts(container: ContainerRecord) -> str:
    return f"{container.restarts} restart{'' if container.restarts == 1 else 's'}"


def _placement(pod: PodRecord) -> Finding | None:
    if pod.ended:
        message = f"pod {pod.name} is {pod.phase} and will be replaced"
        return _problem(names.REASON_CONTAINER_CRASHED, message, Weight.CRASH)
    if pod.unschedulable:
        message = f"pod {pod.name} has no node: {pod.unschedulable}"
        return _problem(names.REASON_UNSCHEDULABLE, message, Weight.PLACEMENT)
    return None


def _refused(pod: PodRecord, view: AgentView | None) -> Finding | None:
    """Some engines end when they are refused: that crash is a consequence."""
    reason = view.report.not_ready_reason if view and view.report else None
    return _agent(pod, view) if reason == NotReady.ENGINE_REFUSED else None


def _agent(pod: PodRecord, view: AgentView | None) -> Finding | None:
    agent = pod.agent
    if agent is None or not agent.running or agent.ready or view is None or view.report is None:
        return None
    reason, text = view.report.not_ready_reason, view.report.not_ready_message
    if view.report.ready or reason is None or reason in _WAITS_FOR_ENGINE:
        return None
    message = f"agent of pod {pod.name} is not ready: {reason}: {text}"
    return _problem(names.REASON_AGENT_NOT_READY, message, Weight.AGENT)


def _gate(pod: PodRecord, held: Mapping[str, str]) -> Finding | None:
    """Of a pod that is ready but for its gate."""
    if pod.gate is not False or not all(container.ready for container in pod.containers):
        return None
    failed = pod.name in held
    why = held.get(pod.name, "no sample of it has arrived whole yet")
    message = f"pod {pod.name} is held back until state is seen to move: {why}"
    reason = names.REASON_PREFLIGHT_FAILED if failed else names.REASON_PREFLIGHT_PENDING
    return _problem(reason, message, Weight.AGENT if failed else Weight.STARTING)


def _unreachable(pod: PodRecord) -> Finding | None:
    if not pod.unanswered or not all(container.ready for container in pod.containers):
        return None
    message = (
        f"node {pod.node} of pod {pod.name} does not answer; the pod is replaced when the cluster"
        " gives the node up, 5 min later unless the pod's tolerations say otherwise"
    )
    return _problem(names.REASON_NODE_UNREACHABLE, message, Weight.PLACEMENT)


def _starting(pod: PodRecord) -> Finding:
    main = pod.engine or pod.container(names.CONTAINER_ROUTER)
    if main is not None and main.running:
        what = "is not ready yet" if main.ready else "is starting"
        again = f" again ({_restarts(main)})" if main.restarts else ""
        message = f"{main.name} of pod {pod.name} {what if not again else 'is starting'}{again}"
        return _problem(names.REASON_ENGINE_STARTING, message, Weight.STARTING)
    where = f"on node {pod.node}" if pod.node else "and waits for a node"
    message = f"pod {pod.name} is being created {where}"
    return _problem(names.REASON_CONTAINER_CREATING, message, Weight.CREATING)
