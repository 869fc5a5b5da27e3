"""What the agent, the engines and the operator agree on; standard library only.

The operator may import this module and no other of the package. Environment names, ports, the
closed sets of stages and causes, the names of the known state types, and the report that
`GET /v1/report` answers to whoever shows a token made from a key of the deployment. `parse_report`
refuses anything it does not know, naming the field; it reads the reports of older agents, so the
operator is upgraded first.
"""

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from disagg_transfer.strict_json import ShapeError, from_json, parse_json, shown, since, to_json

REPORT_VERSION: Final = 2  # 2 added preflight, the reason for the transport, and strangers
MAX_REPORT_BYTES: Final = 16 << 20

ENV_NAMESPACE: Final = "DISAGG_NAMESPACE"
ENV_DEPLOYMENT: Final = "DISAGG_DEPLOYMENT"
ENV_REVISION: Final = "DISAGG_REVISION"
ENV_ROLE: Final = "DISAGG_ROLE"
ENV_POD: Final = "DISAGG_POD"
ENV_POD_IP: Final = "DISAGG_POD_IP"
ENV_GROUP: Final = "DISAGG_GROUP"
ENV_RANK: Final = "DISAGG_RANK"  # of the pod in its group
ENV_RANKS: Final = "DISAGG_RANKS"  # engine ranks (GPUs) of this pod
ENV_MODEL: Final = "DISAGG_MODEL"
ENV_STATE_TYPES: Final = "DISAGG_STATE_TYPES"
ENV_SOCKET: Final = "DISAGG_SOCKET"
ENV_CONTROL_PORT: Final = "DISAGG_CONTROL_PORT"
ENV_HTTP_PORT: Final = "DISAGG_HTTP_PORT"
ENV_ARENA_BYTES: Final = "DISAGG_ARENA_BYTES"
ENV_ARENA_MEMORY: Final = "DISAGG_ARENA_MEMORY"
ENV_KEY_FILE: Final = "DISAGG_KEY_FILE"
ENV_PEER_SERVICE: Final = "DISAGG_PEER_SERVICE"
ENV_TIMEOUTS: Final = "DISAGG_TIMEOUTS"
ENV_INTEGRITY: Final = "DISAGG_INTEGRITY"
ENV_INTEGRITY_RATE: Final = "DISAGG_INTEGRITY_RATE"
ENV_FAULT_SWITCH: Final = "DISAGG_FAULT_SWITCH"
ENV_QUARANTINE: Final = "DISAGG_QUARANTINE"
ENV_HEARTBEAT: Final = "DISAGG_HEARTBEAT"
ENV_CREDITS: Final = "DISAGG_CREDITS"
ENV_PREFLIGHT: Final = "DISAGG_PREFLIGHT"
ENV_CANARY: Final = "DISAGG_CANARY_SECONDS"
ENV_TRANSPORT_POLICY: Final = "DISAGG_TRANSPORT_POLICY"
ENV_TRANSPORT: Final = "DISAGG_TRANSPORT"
ENV_NET_DEVICES: Final = "DISAGG_NET_DEVICES"
ENV_DATA_PORTS: Final = "DISAGG_DATA_PORTS"
ENV_BOOTSTRAP_PORT: Final = "DISAGG_BOOTSTRAP_PORT"

ENGINE_PORT: Final = 30000
CONTROL_PORT: Final = 8998  # the `bootstrap_port` a router sends is this one
HTTP_PORT: Final = 9464
DATA_PORTS: Final = (21000, 21999)  # that UCX listens on, for a NetworkPolicy to name
SOCKET_PATH: Final = "/run/disagg/agent.sock"
KEY_PATH: Final = "/etc/disagg/key/key"

PATH_LIVE: Final = "/livez"
PATH_STARTED: Final = "/startupz"
PATH_READY: Final = "/readyz"
PATH_METRICS: Final = "/metrics"
PATH_REPORT: Final = "/v1/report"


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Integrity(StrEnum):
    ALWAYS = "always"
    SAMPLED = "sampled"  # ENV_INTEGRITY_RATE of all chunks
    OFF = "off"


class MemoryKind(StrEnum):
    """Where the arena is."""

    HOST = "host"
    DEVICE = "device"  # on the GPU of the engine


class FaultSwitch(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


class Stage(StrEnum):
    """Where a request was when it failed; each has a deadline of its own."""

    BOOTSTRAP = "bootstrap"  # connect, authenticate, compare layouts
    QUEUE = "queue"  # wanted, until the peer's first offer: its queue and its compute
    NOTIFY = "notify"  # from one offer or chunk to the next, until all are offered
    ALLOCATE = "allocate"  # room in the arena
    POST = "post"  # handed to NIXL
    WIRE = "wire"  # bytes under way
    SCATTER = "scatter"  # handed to the engine, until it gives a chunk back


class Cause(StrEnum):
    TIMEOUT = "Timeout"
    MISSING_STATE = "MissingState"
    EXTRA_STATE = "ExtraState"
    SHORT_PAYLOAD = "ShortPayload"
    LONG_PAYLOAD = "LongPayload"
    DUPLICATE_PAYLOAD = "DuplicatePayload"
    OVERLAPPING_PAYLOAD = "OverlappingPayload"
    DIGEST_MISMATCH = "DigestMismatch"
    LAYOUT_MISMATCH = "LayoutMismatch"
    EPOCH_MISMATCH = "EpochMismatch"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    PEER_LOST = "PeerLost"
    PEER_UNREACHABLE = "PeerUnreachable"
    ENGINE_LOST = "EngineLost"
    ABORTED = "Aborted"
    ARENA_FULL = "ArenaFull"
    TRANSPORT_ERROR = "TransportError"
    UNKNOWN_STATE_TYPE = "UnknownStateType"
    PROTOCOL_ERROR = "ProtocolError"


MAX_PAIRS: Final = 256  # of pods, that a report's row of one state type names

# What an agent knows by itself. One that is installed beside it is called `vendor/name`: the
# operator admits any such name, and the agents, which have it or do not, have the last word.
STATE_TYPES: Final = (
    "block_scale",
    "block_scale_swa",
    "c128_state",
    "kv",
    "mamba",
    "minimax_index_k",
    "none",
    "nsa",
    "qsa_compressed",
    "swa",
    "swa_ring",
)
STATE_TYPE_ALIASES: Final = {"dsa": "nsa"}  # newer engines say dsa
MAX_STATE_TYPE: Final = 63  # characters of a name
OWN_STATE_TYPE: Final = r"[a-z0-9][-a-z0-9.]{0,30}/[a-z0-9][-a-z0-9_.]{0,30}"  # vendor/name


class NotReady(StrEnum):
    """Why /readyz says no; the report's `notReadyReason`."""

    STARTING = "Starting"
    ENGINE_NOT_REGISTERED = "EngineNotRegistered"
    ENGINE_REFUSED = "EngineRefused"
    NO_PEERS = "NoPeers"
    PEERS_NOT_MET = "PeersNotMet"
    LAYOUT_MISMATCH = "LayoutMismatch"
    LANE_POISONED = "LanePoisoned"
    LANE_FAILED = "LaneFailed"
    PREFLIGHT_PENDING = "PreflightPending"
    PREFLIGHT_FAILED = "PreflightFailed"
    TRANSPORT_REFUSED = "TransportRefused"


class PreflightMode(StrEnum):
    """Whether samples are pulled from peers, and whether readiness waits for them."""

    REQUIRED = "required"
    OBSERVE = "observe"
    OFF = "off"


class PreflightState(StrEnum):
    PENDING = "pending"
    PASSED = "passed"
    FAILED = "failed"


class Transport(StrEnum):
    """What NIXL's reads really go over."""

    RDMA = "rdma"
    CUDA_IPC = "cuda_ipc"  # NVLink or PCIe between the GPUs of one node
    SHM = "shm"
    CMA = "cma"  # one copy by the kernel between two processes
    TCP = "tcp"
    UNKNOWN = "unknown"


MIXED_TRANSPORT: Final = "mixed"  # of a whole agent, when its peers differ


class TransportPolicy(StrEnum):
    PREFER_RDMA = "PreferRDMA"  # what is not RDMA is told
    REQUIRE_RDMA = "RequireRDMA"  # and the agent is not ready
    ANY = "Any"


class PeerState(StrEnum):
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentReport:
    name: str
    state_type: str
    item_bytes: int
    layers: int
    dtype: str
    page_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    connected: bool
    components: tuple[ComponentReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchReport:
    field: str
    prefill: str
    decode: str
    prefill_pod: str
    decode_pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    pod: str  # its address until it has said its name
    incarnation: str
    state: PeerState
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReport:
    time: float
    stage: Stage
    cause: Cause
    component: str | None
    detail: str
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """What one state type came to between two pods; one is empty when it never said its name."""

    prefill_pod: str
    decode_pod: str
    last_success: float | None
    last_failure: FailureReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTypeReport:
    """One row; `transfers` and `bytes` count whole components, `failures` includes `timeouts`.
    `pairs` are the MAX_PAIRS that something happened to last.
    """

    type: str
    transfers: int
    bytes: int
    timeouts: int
    failures: int
    pairs: tuple[PairReport, ...]

    @property
    def last_success(self) -> float | None:
        times = (pair.last_success for pair in self.pairs)
        return max((time for time in times if time is not None), default=None)

    @property
    def last_failure(self) -> FailureReport | None:
        told = (pair.last_failure for pair in self.pairs)
        found = (failure for failure in told if failure is not None)
        return max(found, key=lambda failure: failure.time, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaReport:
    bytes: int
    used: int
    unsettled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What came of the newest sample pulled from a peer over the real lane.

    `gbps` is 10^9 bytes per second of the samples, `latency_ms` one small read, both None until a
    sample has arrived whole; `cause` is set when `state` is failed.
    """

    pod: str
    state: PreflightState
    gbps: float | None
    latency_ms: float | None
    transport: Transport
    transport_reason: str
    detail: str
    cause: Cause | None
    at: float | None  # of the newest end, good or bad
    passed_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    version: int
    cursor: int
    incarnation: str
    pod: str
    role: Role
    revision: str
    time: float
    engine: EngineReport
    ready: bool
    not_ready_reason: str | None
    not_ready_message: str | None
    transport: str
    layout_mismatch: tuple[MismatchReport, ...]
    peers: tuple[PeerReport, ...]
    state_types: tuple[StateTypeReport, ...]
    inflight: int
    arena: ArenaReport
    faults: tuple[str, ...]
    transport_reason: str = since(2, "")  # why it is not RDMA; empty when it is, or is not known
    preflight: tuple[PreflightReport, ...] = since(2, ())
    strangers_refused: int = since(2, 0)  # connections turned away, on any port or socket

    def to_json(self) -> bytes:
        return to_json(self)


def key_id(key: bytes) -> bytes:
    """Names a key without telling it."""
    return hmac.digest(key, b"name of this key", "sha256")[:8]


def report_token(key: bytes) -> str:
    """What `Authorization: Bearer` must hold for a report; it opens nothing else."""
    return hmac.digest(key, b"disagg report v1", "sha256").hex()


class ReportError(ValueError):
    """The bytes are not a report of a known version; the message names the field."""


def parse_report(data: bytes) -> Report:
    """A report of this version or an older one. A newer one is refused: what it adds may be the
    very thing that should be told.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise ReportError(f"report: {len(data)} bytes; at most {MAX_REPORT_BYTES}")
    try:
        value = parse_json(data)
    except ShapeError as error:
        raise ReportError(f"report: {error}") from error
    version = value.get("version") if isinstance(value, dict) else REPORT_VERSION
    if type(version) is not int or not 1 <= version <= REPORT_VERSION:
        raise ReportError(
            f"report.version: {shown(version)} is not within 1..{REPORT_VERSION}; "
            "the agent is newer than the operator: upgrade the operator first"
        )
    try:
        return from_json(Report, value, path="report", version=version)
    except ShapeError as error:
        raise ReportError(str(error)) from error
