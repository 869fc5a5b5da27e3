"""What the cluster says, as small frozen records: all that the planner and the status look at.

The indexes keep one record per object and never its body: ten thousand pods must fit in memory.
Services and routers also keep their spec, to see a field that somebody changed by hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from disagg_operator import names
from disagg_operator.kinds import Kind, Owner
from disagg_operator.packed import Packed
from disagg_transfer.contract import Report

# The kubelet's words for "the image cannot be had".
PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
# A container that was given something it cannot start with: a missing Secret, a bad command.
CONFIG_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
OOM_KILLED = "OOMKilled"
# Characters kept of a container's last words; a condition's message has room for 1024.
LINE_LIMIT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """One container of a pod; exit fields tell of the newest run that ended, if any."""

    name: str
    image: str
    ready: bool
    restarts: int
    started_at: float | None = None  # of the present run; None while it does not run
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    exit_message: str = ""  # the last line that it said, where the kubelet keeps it

    @property
    def running(self) -> bool:
        return self.started_at is not None

    @property
    def uncreated(self) -> bool:
        """Nothing of it was ever there: its image may be on its way, or its volumes are not there."""
        return not (self.running or self.restarts or self.exit_code is not None) and (
            self.waiting_reason in {"", "ContainerCreating", "PodInitializing"}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    name: str
    uid: str
    owner_uid: str
    revision: str
    role: str
    group: int
    rank: int
    template: str  # of its role when it was made
    phase: str
    ready: bool
    unanswered: bool  # not ready by the word of the node controller, since its kubelet is silent
    gate: bool | None  # whether its readiness gate is open; None for a pod that has none
    created_at: float  # Unix seconds
    deleted_at: float | None  # when its grace period ends or ended; None while nobody deletes it
    node: str
    ip: str
    unschedulable: str  # the scheduler's message, or empty
    disruption: str  # why the cluster takes it away: drained, preempted, its node is dead; or empty
    containers: tuple[ContainerRecord, ...]

    @property
    def deleting(self) -> bool:
        return self.deleted_at is not None

    @property
    def ended(self) -> bool:
        return self.phase in {"Failed", "Succeeded"}

    @property
    def agent(self) -> ContainerRecord | None:
        return self.container(names.CONTAINER_AGENT)

    @property
    def engine(self) -> ContainerRecord | None:
        return self.container(names.CONTAINER_ENGINE)

    def container(self, name: str) -> ContainerRecord | None:
        return next((record for record in self.containers if record.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    name: str
    uid: str
    role: str  # names.ROUTER for the Service that clients use
    revision: str  # of the pods that it leads to
    intent: str
    spec: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterRecord:
    name: str
    uid: str
    revision: str
    intent: str
    spec: Packed
    desired: int
    ready: int
    settled: bool  # the newest template runs everywhere and nothing else does


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRecord:
    """A disruption budget or a network policy."""

    kind: Kind
    name: str
    uid: str
    intent: str
    spec: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerRecord:
    """What a scaler asks for, and what its status says."""

    name: str
    uid: str
    owner_uid: str
    generation: int
    replicas: int
    told_generation: int
    told_replicas: int
    told_selector: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRecord:
    """A DisaggDeployment; `held` by our finalizer."""

    namespace: str
    name: str
    uid: str
    deleting: bool
    held: bool
    body: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One moment's view of a DisaggDeployment's children, by name."""

    pods: Mapping[str, PodRecord]
    services: Mapping[str, ServiceRecord]
    routers: Mapping[str, RouterRecord]
    guards: Mapping[str, GuardRecord]
    scalers: Mapping[str, ScalerRecord] = field(default_factory=dict)

    def role_pods(self, role: str, *, revision: str) -> tuple[PodRecord, ...]:
        return tuple(
            pod for pod in self.pods.values() if pod.role == role and pod.revision == revision
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """The newest report of one pod's agent; `error` while it cannot be had, since the Unix time
    `failing_since`.
    """

    report: Report | None = None
    error: str = ""
    failing_since: float | None = None
    refused: bool = False  # the agent answers, and does not take our token


def observe(
    *,
    owner_uid: str,
    pods: Iterable[PodRecord],
    services: Iterable[ServiceRecord],
    routers: Iterable[RouterRecord],
    guards: Iterable[GuardRecord],
    scalers: Iterable[ScalerRecord] = (),
) -> Observed:
    """Pods and scalers of a deleted resource of the same name are left out: they only occupy names."""
    own = (pod for pod in pods if pod.owner_uid in {owner_uid, ""} or pod.role == names.ROUTER)
    return Observed(
        pods={pod.name: pod for pod in sorted(own, key=_name)},
        services={service.name: service for service in sorted(services, key=_name)},
        routers={router.name: router for router in sorted(routers, key=_name)},
        guards={guard.name: guard for guard in sorted(guards, key=_name)},
        scalers={
            scaler.name: scaler
            for scaler in sorted(scalers, key=_name)
            if scaler.owner_uid == owner_uid
        },
    )


def _name(record: PodRecord | ServiceRecord | RouterRecord | GuardRecord | ScalerRecord) -> str:
    return record.name


def owner_key(body: Mapping[str, Any]) -> Owner | None:
    """Whose child an object is, by its label."""
    metadata = body["metadata"]
    name = metadata.get("labels", {}).get(names.LABEL_DEPLOYMENT)
    return (metadata["namespace"], name) if name else None


def pod_record(body: Mapping[str, Any]) -> PodRecord:
    metadata, status = body["metadata"], body.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    scheduled = conditions.get("PodScheduled", {})
    disrupted = conditions.get("DisruptionTarget", {})
    return PodRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=_controller_uid(metadata),
        revision=labels.get(names.LABEL_REVISION, ""),
        role=labels.get(names.LABEL_ROLE, ""),
        group=_number(labels.get(names.LABEL_GROUP)),
        rank=_number(labels.get(names.LABEL_RANK)),
        template=labels.get(names.LABEL_TEMPLATE, ""),
        phase=status.get("phase", "Pending"),
        ready=_is_true(conditions, "Ready"),
        unanswered=_unanswered(conditions.get("Ready", {})),
        gate=_is_true(conditions, names.GATE_STATE_MOVES) if _gated(body) else None,
        created_at=_seconds(metadata.get("creationTimestamp")),
        deleted_at=(
            _seconds(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None
        ),
        node=body.get("spec", {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        unschedulable=_unschedulable(scheduled),
        disruption=disrupted.get("message", "") if disrupted.get("status") == "True" else "",
        containers=_containers(status),
    )


def _unschedulable(scheduled: Mapping[str, Any]) -> str:
    waits = scheduled.get("status") != "True" and scheduled.get("reason") == "Unschedulable"
    return str(scheduled.get("message", "")) if waits else ""


def _is_true(conditions: Mapping[str, Mapping[str, Any]], kind: str) -> bool:
    return conditions.get(kind, {}).get("status") == "True"


def _unanswered(ready: Mapping[str, Any]) -> bool:
    """A kubelet gives a reason with False; the node controller only changes the word."""
    return ready.get("status") == "False" and not ready.get("reason")


def _gated(body: Mapping[str, Any]) -> bool:
    gates = body.get("spec", {}).get("readinessGates", ())
    return any(gate["conditionType"] == names.GATE_STATE_MOVES for gate in gates)


def _controller_uid(metadata: Mapping[str, Any]) -> str:
    owners = metadata.get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _number(label: str | None) -> int:
    """-1 for a label that is missing or that somebody overwrote: such a pod is in no group."""
    return int(label) if label and label.isdigit() else -1


def _containers(status: Mapping[str, Any]) -> tuple[ContainerRecord, ...]:
    statuses = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return tuple(_container(item) for item in statuses)


def _container(status: Mapping[str, Any]) -> ContainerRecord:
    state = status.get("state", {})
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or status.get("lastState", {}).get("terminated") or {}
    running = state.get("running")
    return ContainerRecord(
        name=status["name"],
        image=status.get("image", ""),
        ready=bool(status.get("ready")),
        restarts=int(status.get("restartCount", 0)),
        started_at=_seconds(running.get("startedAt")) if running is not None else None,
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        exit_message=_last_line(ended.get("message", "")),
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LINE_LIMIT] if lines else ""


def _seconds(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def service_record(body: Mapping[str, Any]) -> ServiceRecord:
    metadata, spec = body["metadata"], body.get("spec", {})
    labels = metadata.get("labels", {})
    role = labels.get(names.LABEL_ROLE, "")
    return ServiceRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        role=role,
        revision=spec.get("selector", {}).get(names.LABEL_REVISION, ""),
        intent=metadata.get("annotations", {}).get(names.ANNOTATION_INTENT, ""),
        spec=Packed.of(spec),
    )


def router_record(body: Mapping[str, Any]) -> RouterRecord:
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    desired = int(spec.get("replicas", 1))
    counts = [
        int(status.get(name, 0)) for name in ("replicas", "updatedReplicas", "availableReplicas")
    ]
    current = status.get("observedGeneration", 0) >= metadata.get("generation", 1)
    return RouterRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        revision=metadata.get("labels", {}).get(names.LABEL_REVISION, ""),
        intent=metadata.get("annotations", {}).get(names.ANNOTATION_INTENT, ""),
        spec=Packed.of(spec),
        desired=desired,
        ready=int(status.get("readyReplicas", 0)),
        settled=current and counts == [desired] * 3,
    )


def guard_record(body: Mapping[str, Any], *, kind: Kind) -> GuardRecord:
    metadata = body["metadata"]
    return GuardRecord(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        intent=metadata.get("annotations", {}).get(names.ANNOTATION_INTENT, ""),
        spec=Packed.of(body.get("spec", {})),
    )


def scaler_record(body: Mapping[str, Any]) -> ScalerRecord:
    metadata, status = body["metadata"], body.get("status") or {}
    return ScalerRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=_controller_uid(metadata),
        generation=int(metadata.get("generation", 1)),
        replicas=int(body["spec"]["replicas"]),
        told_generation=int(status.get("observedGeneration", 0)),
        told_replicas=int(status.get("replicas", 0)),
        told_selector=status.get("selector", ""),
    )


def resource_record(body: Mapping[str, Any]) -> ResourceRecord:
    metadata = body["metadata"]
    lean = {name: item for name, item in metadata.items() if name != "managedFields"}
    return ResourceRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        deleting="deletionTimestamp" in metadata,
        held=names.FINALIZER in metadata.get("finalizers", ()),
        body=Packed.of({**body, "metadata": lean}),
    )
