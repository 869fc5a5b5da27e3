"""What the agent, the engines and the operator agree on; standard library only.

The operator may import this module and no other of the package. Environment names, ports, the
closed sets of stages and causes, the names of the known state types, and the report that
`GET /v1/report` answers. Wire names are camelCase; `parse_report` refuses anything it does not
know, naming the field.
"""

import json
import types
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

REPORT_VERSION: Final = 1

ENV_NAMESPACE: Final = "DISAGG_NAMESPACE"
ENV_DEPLOYMENT: Final = "DISAGG_DEPLOYMENT"
ENV_REVISION: Final = "DISAGG_REVISION"
ENV_ROLE: Final = "DISAGG_ROLE"
ENV_POD: Final = "DISAGG_POD"
ENV_POD_IP: Final = "DISAGG_POD_IP"
ENV_GROUP: Final = "DISAGG_GROUP"
ENV_RANK: Final = "DISAGG_RANK"
ENV_MODEL: Final = "DISAGG_MODEL"
ENV_STATE_TYPES: Final = "DISAGG_STATE_TYPES"
ENV_SOCKET: Final = "DISAGG_SOCKET"
ENV_CONTROL_PORT: Final = "DISAGG_CONTROL_PORT"
ENV_HTTP_PORT: Final = "DISAGG_HTTP_PORT"
ENV_ARENA_BYTES: Final = "DISAGG_ARENA_BYTES"
ENV_KEY_FILE: Final = "DISAGG_KEY_FILE"
ENV_PEER_SERVICE: Final = "DISAGG_PEER_SERVICE"
ENV_TIMEOUTS: Final = "DISAGG_TIMEOUTS"
ENV_INTEGRITY: Final = "DISAGG_INTEGRITY"
ENV_FAULT_SWITCH: Final = "DISAGG_FAULT_SWITCH"
ENV_QUARANTINE: Final = "DISAGG_QUARANTINE"
ENV_HEARTBEAT: Final = "DISAGG_HEARTBEAT"
ENV_BOOTSTRAP_PORT: Final = "DISAGG_BOOTSTRAP_PORT"

ENGINE_PORT: Final = 30000
CONTROL_PORT: Final = 8998  # the `bootstrap_port` a router sends is this one
HTTP_PORT: Final = 9464
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
    OFF = "off"


class FaultSwitch(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


class Stage(StrEnum):
    """Where a request was when it failed; each has a deadline of its own."""

    BOOTSTRAP = "bootstrap"  # connect, authenticate, compare layouts
    QUEUE = "queue"  # wanted, until the peer's first offer: its queue and its compute
    NOTIFY = "notify"  # first offer, until every offer of the request
    ALLOCATE = "allocate"  # room in the arena
    POST = "post"  # handed to NIXL
    WIRE = "wire"  # bytes under way
    SCATTER = "scatter"  # arrived, until the engine has taken it


class Cause(StrEnum):
    TIMEOUT = "Timeout"
    MISSING_STATE = "MissingState"
    EXTRA_STATE = "ExtraState"
    SHORT_PAYLOAD = "ShortPayload"
    LONG_PAYLOAD = "LongPayload"
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

STATE_TYPES: Final = ("kv", "mamba", "none", "nsa", "swa")
STATE_TYPE_ALIASES: Final = {"dsa": "nsa"}  # newer engines say dsa


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

    def to_json(self) -> bytes:
        return json.dumps(_plain(self), separators=(",", ":")).encode()


class ReportError(ValueError):
    """The bytes are not a report of this version; the message names the field."""


def parse_report(data: bytes) -> Report:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ReportError(f"report: not JSON: {error}") from error
    if isinstance(value, dict) and value.get("version") != REPORT_VERSION:
        raise ReportError(
            f"report.version: {value.get('version')!r} is not {REPORT_VERSION}; "
            "run agent and operator images of the same release"
        )
    return _record(Report, value, "report")


_T = TypeVar("_T")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {_camel(f.name): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _record(kind: type[_T], value: Any, path: str) -> _T:
    if not isinstance(value, dict):
        raise ReportError(f"{path}: {value!r} is not an object")
    hints = get_type_hints(kind)
    named = {_camel(name): name for name in hints}
    for key in value:
        if key not in named:
            raise ReportError(f"{path}.{key}: unknown field; known: {', '.join(sorted(named))}")
    for key in named:
        if key not in value:
            raise ReportError(f"{path}.{key}: missing")
    return kind(**{n: _typed(hints[n], value[k], f"{path}.{k}") for k, n in named.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _typed(get_args(hint)[0], value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ReportError(f"{path}: {value!r} is not a list")
        return tuple(_typed(get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, value, path)
    if issubclass(hint, StrEnum):
        return _member(hint, value, path)
    return _scalar(hint, value, path)


def _member(kind: type[StrEnum], value: Any, path: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError as error:
        raise ReportError(f"{path}: {value!r} is not one of {', '.join(kind)}") from error


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ReportError(f"{path}: {value!r} is not a {kind.__name__}")
    return value
