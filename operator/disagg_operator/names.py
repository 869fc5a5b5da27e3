"""Every name that other programs or people see, once: API identity, labels, conditions, reasons.

Names shared with the agents (environment variables, ports, state types) are theirs and live in
`disagg_transfer.contract`.
"""

from disagg_transfer.contract import Role

# API identity.
GROUP = "disagg.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DisaggDeployment"
PLURAL = "disaggdeployments"
SINGULAR = "disaggdeployment"
SHORT_NAME = "ddep"
# The number of groups of a role that is scaled from outside.
SCALER_KIND = "DisaggRoleScaler"
SCALER_PLURAL = "disaggrolescalers"
SCALER_SINGULAR = "disaggrolescaler"
SCALER_SHORT_NAME = "drs"

# Owner of every field that we apply (server-side apply) and `managed-by` of every child.
FIELD_MANAGER = "disagg-operator"
# Kopf's finalizer on the resource: the daemon must end before the object may go.
FINALIZER = f"{GROUP}/operator"
# `reportingController` of our Events.
REPORTING_CONTROLLER = f"{GROUP}/operator"

# The two roles of a deployment; also the values of LABEL_ROLE on pods.
PREFILL = Role.PREFILL.value
DECODE = Role.DECODE.value
ROLES = (PREFILL, DECODE)
# Value of LABEL_ROLE on the router's pods and its Deployment.
ROUTER = "router"

# Labels on children; the first one is how a child finds its resource.
LABEL_DEPLOYMENT = f"{GROUP}/deployment"
LABEL_ROLE = f"{GROUP}/role"
# Index of the replica of a role, from 0.
LABEL_GROUP = f"{GROUP}/group"
# Index of the pod inside its group, from 0; rank 0 serves HTTP and is the one the router knows.
LABEL_RANK = f"{GROUP}/rank"
# Five characters that name what the pods are made from (render.revision).
LABEL_REVISION = f"{GROUP}/revision"
# Five characters for what may differ within a revision (render.template); absent when nothing does.
LABEL_TEMPLATE = f"{GROUP}/template"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"
# Server-side selector of everything we watch.
MANAGED_BY = "disagg-operator"
MANAGED_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

# Hash of the whole intent on Services and router Deployments: equal to the rendered object's own
# annotation means that there is nothing to apply.
ANNOTATION_INTENT = f"{GROUP}/intent-hash"

# Readiness gate of pods with preflight.mode Required, and its condition's reasons.
GATE_STATE_MOVES = f"{GROUP}/state-moves"
GATE_REASON_MOVES = "StateMoves"
GATE_REASON_STUCK = "StateDoesNotMove"

# Containers of a pod; both names are reserved in `template`.
CONTAINER_ENGINE = "engine"
CONTAINER_AGENT = "transfer-agent"
CONTAINER_ROUTER = "router"
RESERVED_ENV_PREFIX = "DISAGG_"

# Names of pods are at most 62 characters with this limit: NAME-prefill-REVIS-9999-63.
NAME_LIMIT = 40
REVISION_LENGTH = 5

# Condition types.
READY = "Ready"
PREFILL_READY = "PrefillReady"
DECODE_READY = "DecodeReady"
ROUTER_READY = "RouterReady"
TRANSFER_HEALTHY = "TransferHealthy"
# Tells only: Ready does not wait for it.
PREFLIGHT_PASSED = "PreflightPassed"
# There only where RDMA is asked for.
FABRIC_READY = "FabricReady"
SPEC_VALID = "SpecValid"
# True only while the operator itself fails to reconcile.
DEGRADED = "Degraded"
# There only while a revision is on its way; False once it is not coming any further.
PROGRESSING = "Progressing"

# Reasons of conditions that are met.
REASON_READY = "Ready"
REASON_TRANSFERS_SUCCEEDING = "TransfersSucceeding"
# Reasons of pods that are not there yet or do not run, root cause first.
REASON_IMAGE_PULL_FAILED = "ImagePullFailed"
REASON_CONTAINER_CRASHED = "ContainerCrashed"
REASON_OOM_KILLED = "OOMKilled"
REASON_UNSCHEDULABLE = "Unschedulable"
REASON_NODE_UNREACHABLE = "NodeUnreachable"
REASON_POD_DISRUPTED = "PodDisrupted"
REASON_CONTAINER_CREATING = "ContainerCreating"
REASON_CONTAINER_CONFIG = "ContainerConfigError"
REASON_ENGINE_STARTING = "EngineStarting"
REASON_AGENT_NOT_READY = "AgentNotReady"
REASON_PODS_MISSING = "PodsMissing"
REASON_RESTART_BACKOFF = "RestartBackoff"
REASON_RESTART_LIMIT = "RestartLimitReached"
REASON_NO_REPLICAS = "NoReplicas"
# Reasons of the router and of the rollout.
REASON_ROUTER_UNAVAILABLE = "RouterUnavailable"
REASON_ROUTER_DISABLED = "RouterDisabled"
REASON_ROLLING_OUT = "RollingOut"
REASON_PROGRESS_DEADLINE = "ProgressDeadlineExceeded"
REASON_PAUSED = "Paused"
# Reasons of TransferHealthy.
REASON_NO_DATA = "NoData"
REASON_STATE_TRANSFER_TIMEOUT = "StateTransferTimeout"
REASON_STATE_TRANSFER_FAILED = "StateTransferFailed"
REASON_NO_TRANSFER_TRAFFIC = "NoTransferTraffic"
REASON_LAYOUT_MISMATCH = "LayoutMismatch"
REASON_AGENT_UNREACHABLE = "AgentUnreachable"
REASON_REPORT_REFUSED = "ReportRefused"
# Reasons of FabricReady.
REASON_FABRIC_READY = "FabricReady"
REASON_NO_RDMA = "NoRdma"
REASON_MIXED_FABRIC = "MixedFabric"
# Reasons of PreflightPassed.
REASON_PREFLIGHT_PASSED = "PreflightPassed"
REASON_PREFLIGHT_PENDING = "PreflightPending"
REASON_PREFLIGHT_FAILED = "PreflightFailed"
# Reasons of SpecValid and Degraded.
REASON_INVALID_SPEC = "InvalidSpec"
REASON_RECONCILE_ERROR = "ReconcileError"
REASON_FORBIDDEN = "Forbidden"
REASON_GANG_NOT_SERVED = "GangSchedulerMissing"

# Reasons of Events; the first group are warnings.
EVENT_TRANSFER_TIMEOUT = "TransferTimeout"
EVENT_TRANSFER_FAILED = "TransferFailed"
EVENT_NO_TRANSFER_TRAFFIC = "NoTransferTraffic"
EVENT_LAYOUT_MISMATCH = "LayoutMismatch"
EVENT_IMAGE_PULL_FAILED = "ImagePullFailed"
EVENT_CONTAINER_CRASHED = "ContainerCrashed"
EVENT_INVALID_SPEC = "InvalidSpec"
EVENT_TRANSFER_RECOVERED = "TransferRecovered"
EVENT_POD_RECREATED = "PodRecreated"
EVENT_REVISION_STARTED = "RevisionStarted"
EVENT_REVISION_SERVING = "RevisionServing"

# Phases, for people only; programs read conditions.
PHASE_PENDING = "Pending"
PHASE_PROGRESSING = "Progressing"
PHASE_READY = "Ready"
PHASE_DEGRADED = "Degraded"
PHASE_PAUSED = "Paused"
PHASE_FAILED = "Failed"


def role_service_name(name: str, *, role: str, revision: str) -> str:
    return f"{name}-{role}-{revision}"


def pod_name(name: str, *, role: str, revision: str, group: int, rank: int) -> str:
    return f"{role_service_name(name, role=role, revision=revision)}-{group}-{rank}"


def gang_name(name: str, *, role: str, revision: str, group: int) -> str:
    return f"{role_service_name(name, role=role, revision=revision)}-{group}"


def router_name(name: str, *, revision: str) -> str:
    return f"{name}-{ROUTER}-{revision}"


def scaler_name(name: str, role: str) -> str:
    return f"{name}-{role}"


def key_secret_name(name: str, *, revision: str) -> str:
    return f"{name}-{revision}-key"
