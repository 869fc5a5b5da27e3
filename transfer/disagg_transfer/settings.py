"""The agent's settings, from its environment; every bad value is refused by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from disagg_transfer import contract
from disagg_transfer.arena import ALIGNMENT
from disagg_transfer.canary import PreflightSettings
from disagg_transfer.contract import (
    FaultSwitch,
    Integrity,
    MemoryKind,
    PreflightMode,
    Role,
    Stage,
    TransportPolicy,
)
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import SettingsError, UnknownStateTypeError
from disagg_transfer.integrity import Sampling
from disagg_transfer.limits import (
    CreditLimits,
    Heartbeat,
    QuarantineLimits,
    credit_limits,
    heartbeat,
    quarantine_limits,
)
from disagg_transfer.protocol import MAX_NODES, MAX_RANKS
from disagg_transfer.registry import entries, lookup
from disagg_transfer.strict_json import ShapeError, parse_json, shown
from disagg_transfer.ucx import Transport, UcxSettings

# Long enough for a cold first connection (38 s were seen once, on RDMA, before warm-up).
DEFAULT_TIMEOUT_S: Final = 30.0
# A prefill queue is load, not a fault; its deadline is apart so that nobody calls it one.
DEFAULT_QUEUE_TIMEOUT_S: Final = 120.0
DEFAULT_ARENA_BYTES: Final = 256 << 20
DEFAULT_INTEGRITY_RATE: Final = 0.1
MAX_ARENA_BYTES: Final = 1 << 44
MIN_DATA_PORTS: Final = 16  # one for each device of each lane that shares an address
MIN_KEY_BYTES: Final = 16
MAX_KEYS: Final = 2
_MAX_KEY_FILE_BYTES: Final = 4096
MAX_TIMEOUT_S: Final = 24 * 3600.0
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}(?::\d{1,3})?\Z")
_MAX_DIGITS: Final = 20  # int() itself refuses more than 4,300, in other words
_PEER = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    namespace: str
    deployment: str
    revision: str
    role: Role
    pod: str
    group: str
    node: int  # of this pod in its group
    ranks: int  # engine ranks of this pod; global ones from node * ranks on
    model: str
    state_types: frozenset[str]  # canonical; empty: do not check the engine's
    socket: Path
    control_port: int  # 0: any free one
    http_port: int  # 0: any free one
    arena_bytes: int  # of each rank
    arena_memory: MemoryKind
    key_file: Path
    keys: tuple[bytes, ...]  # newest first; the file is read again while the agent runs
    peer_services: tuple[Address, ...]
    timeouts: Timeouts
    integrity: Sampling
    fault_switch: FaultSwitch
    quarantine: QuarantineLimits
    heartbeat: Heartbeat
    credits: CreditLimits
    ucx: UcxSettings
    preflight: PreflightSettings

    @property
    def admin_socket(self) -> Path:
        return self.socket.with_name("admin.sock")


def from_environment(env: Mapping[str, str]) -> Settings:
    entries()  # an installed state type that is of no use is refused now, not at a request
    ranks = _number(env, contract.ENV_RANKS, 1, 1, MAX_RANKS)
    return Settings(
        namespace=_text(env, contract.ENV_NAMESPACE),
        deployment=_text(env, contract.ENV_DEPLOYMENT),
        revision=_text(env, contract.ENV_REVISION),
        role=_member(env, contract.ENV_ROLE, Role, None),
        pod=_text(env, contract.ENV_POD),
        group=env.get(contract.ENV_GROUP, "0"),
        node=_number(env, contract.ENV_RANK, 0, 0, MAX_NODES - 1),
        ranks=ranks,
        model=env.get(contract.ENV_MODEL, ""),
        state_types=_state_types(env),
        socket=Path(env.get(contract.ENV_SOCKET, contract.SOCKET_PATH)),
        control_port=_number(env, contract.ENV_CONTROL_PORT, contract.CONTROL_PORT, 0, 65535),
        http_port=_number(env, contract.ENV_HTTP_PORT, contract.HTTP_PORT, 0, 65535),
        arena_bytes=_arena_share(env, ranks),
        arena_memory=_member(env, contract.ENV_ARENA_MEMORY, MemoryKind, MemoryKind.HOST),
        key_file=_key_file(env),
        keys=read_keys(_key_file(env)),
        peer_services=_peers(env),
        timeouts=_timeouts(env),
        integrity=_sampling(env),
        fault_switch=_member(env, contract.ENV_FAULT_SWITCH, FaultSwitch, FaultSwitch.DISABLED),
        quarantine=quarantine_limits(env),
        heartbeat=heartbeat(env),
        credits=credit_limits(env),
        ucx=UcxSettings(
            transport=_member(env, contract.ENV_TRANSPORT, Transport, Transport.ANY),
            devices=_devices(env),
            ports=_ports(env),
        ),
        preflight=_preflight(env),
    )


def _arena_share(env: Mapping[str, str], ranks: int) -> int:
    """The pod's arena divided: the container's memory limit is for all of its ranks together."""
    low = ranks * ALIGNMENT
    total = _number(env, contract.ENV_ARENA_BYTES, DEFAULT_ARENA_BYTES, low, MAX_ARENA_BYTES)
    return -(-(total // ranks) // ALIGNMENT) * ALIGNMENT


def parse_address(text: str) -> Address:
    """host, host:port or [v6]:port; the port is the agents' own unless given."""
    match = _PEER.match(text)
    port = int(match["port"] or contract.CONTROL_PORT) if match else 0
    if match is None or not 0 < port <= 65535:
        raise SettingsError(f"{text!r:.300} is not host or host:port with a port of 1..65535")
    return Address(host=match["host"].strip("[]"), port=port)


def _text(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not 0 < len(value) <= 253:
        raise SettingsError(f"{name}: {value!r} must be 1 to 253 characters; the operator sets it")
    return value


def _number(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > _MAX_DIGITS or not low <= int(text) <= high:
        raise SettingsError(f"{name}: {text!r:.64} is not a whole number within {low}..{high}")
    return int(text)


_Member = TypeVar("_Member", bound=StrEnum)


def _member(
    env: Mapping[str, str], name: str, kind: type[_Member], default: _Member | None
) -> _Member:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {text!r} is not one of {', '.join(kind)}") from error


def _sampling(env: Mapping[str, str]) -> Sampling:
    mode = _member(env, contract.ENV_INTEGRITY, Integrity, Integrity.ALWAYS)
    name = contract.ENV_INTEGRITY_RATE
    text = env.get(name, "")
    if text and mode is not Integrity.SAMPLED:
        raise SettingsError(
            f"{name}: {text!r} is set, but {contract.ENV_INTEGRITY} is {mode.value!r}; "
            f"set that to {Integrity.SAMPLED.value!r}, or leave the rate out"
        )
    try:
        rate = float(text or DEFAULT_INTEGRITY_RATE)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1:
        raise SettingsError(f"{name}: {text!r} is not a share of the chunks within 0..1")
    return Sampling(mode=mode, rate=rate)


def _state_types(env: Mapping[str, str]) -> frozenset[str]:
    names = [part.strip() for part in env.get(contract.ENV_STATE_TYPES, "").split(",")]
    try:
        return frozenset(lookup(name).name for name in names if name)
    except UnknownStateTypeError as error:
        raise SettingsError(f"{contract.ENV_STATE_TYPES}: {error}") from error


def _key_file(env: Mapping[str, str]) -> Path:
    return Path(env.get(contract.ENV_KEY_FILE, contract.KEY_PATH))


def read_keys(path: Path) -> tuple[bytes, ...]:
    """One key, or two lines while the first takes the second's place; hex or any other text.

    A file that is no text is one key as it is.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"{contract.ENV_KEY_FILE}: cannot read {path}: {error.strerror}; "
            "mount the deployment's key Secret there"
        ) from error
    text = all(32 <= byte < 127 or byte in b"\r\n\t" for byte in raw)
    keys = tuple(_key(part) for part in (raw.splitlines() if text else [raw]) if part.strip())
    shortest = min((len(key) for key in keys), default=0)
    if not 1 <= len(keys) <= MAX_KEYS or shortest < MIN_KEY_BYTES:
        raise SettingsError(
            f"{contract.ENV_KEY_FILE}: {path} holds {len(keys)} keys, the shortest of {shortest} "
            f"bytes; 1 to {MAX_KEYS} of at least {MIN_KEY_BYTES} bytes are needed, one a line"
        )
    if len(raw) > _MAX_KEY_FILE_BYTES:
        raise SettingsError(
            f"{contract.ENV_KEY_FILE}: {path} is longer than {_MAX_KEY_FILE_BYTES} bytes"
        )
    return keys


def _key(raw: bytes) -> bytes:
    raw = raw.strip()
    if len(raw) % 2 == 0 and re.fullmatch(rb"[0-9a-fA-F]{32,}", raw):
        return bytes.fromhex(raw.decode())
    return raw


def _devices(env: Mapping[str, str]) -> tuple[str, ...]:
    names = [part.strip() for part in env.get(contract.ENV_NET_DEVICES, "").split(",")]
    for name in filter(None, names):
        if not _DEVICE.match(name):
            raise SettingsError(
                f"{contract.ENV_NET_DEVICES}: {name!r} is not a device name such as eth0 or "
                "mlx5_0:1; list them with commas, or leave it empty for any"
            )
    return tuple(filter(None, names))


def _ports(env: Mapping[str, str]) -> tuple[int, int]:
    text = env.get(contract.ENV_DATA_PORTS, "")
    match = re.fullmatch(r"(\d{4,5})-(\d{4,5})", text, flags=re.ASCII)
    if not text:
        return contract.DATA_PORTS
    low, high = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (low >= 1024 and low + MIN_DATA_PORTS - 1 <= high <= 65535):
        raise SettingsError(
            f"{contract.ENV_DATA_PORTS}: {text!r:.64} is not first-last with ports within "
            f"1024..65535 and at least {MIN_DATA_PORTS} of them"
        )
    return low, high


def _preflight(env: Mapping[str, str]) -> PreflightSettings:
    plain = PreflightSettings()
    mode = _member(env, contract.ENV_PREFLIGHT, PreflightMode, plain.mode)
    policy = _member(env, contract.ENV_TRANSPORT_POLICY, TransportPolicy, plain.policy)
    if mode is PreflightMode.OFF and policy is TransportPolicy.REQUIRE_RDMA:
        raise SettingsError(
            f"{contract.ENV_TRANSPORT_POLICY}: {policy} needs the transport to be measured, and "
            f"{contract.ENV_PREFLIGHT} is {mode}; set that to observe or required"
        )
    text = env.get(contract.ENV_CANARY, "")
    try:
        every: float | str = float(text) if text else plain.every_s
    except ValueError:
        every = text
    return PreflightSettings(mode=mode, policy=policy, every_s=_seconds(contract.ENV_CANARY, every))


def _peers(env: Mapping[str, str]) -> tuple[Address, ...]:
    names = [part.strip() for part in env.get(contract.ENV_PEER_SERVICE, "").split(",")]
    try:
        return tuple(parse_address(name) for name in names if name)
    except SettingsError as error:
        raise SettingsError(f"{contract.ENV_PEER_SERVICE}: {error}") from error


def _timeouts(env: Mapping[str, str]) -> Timeouts:
    name = contract.ENV_TIMEOUTS
    try:
        value = parse_json(env.get(name) or "{}")
    except ShapeError as error:
        raise SettingsError(f"{name}: {error}") from error
    if not isinstance(value, dict) or value.keys() - {"default", "stages", "stateTypes"}:
        raise SettingsError(f"{name}: must be an object of default, stages and stateTypes")
    stages = {
        _stage(key): _seconds(f"{name}.stages.{key}", seconds)
        for key, seconds in _object(f"{name}.stages", value.get("stages")).items()
    }
    state_types = {
        _type_name(key): _seconds(f"{name}.stateTypes.{key}", seconds)
        for key, seconds in _object(f"{name}.stateTypes", value.get("stateTypes")).items()
    }
    default_s = _seconds(f"{name}.default", value.get("default", DEFAULT_TIMEOUT_S))
    stages.setdefault(Stage.QUEUE, max(DEFAULT_QUEUE_TIMEOUT_S, default_s))
    return Timeouts(default_s=default_s, stages=stages, state_types=state_types)


def _object(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{name}: {shown(value)} is not an object of seconds by name")
    return value


def _stage(name: str) -> Stage:
    try:
        return Stage(name)
    except ValueError as error:
        raise SettingsError(
            f"{contract.ENV_TIMEOUTS}.stages: {name!r} is not one of {', '.join(Stage)}"
        ) from error


def _type_name(name: str) -> str:
    try:
        return lookup(name).name
    except UnknownStateTypeError as error:
        raise SettingsError(f"{contract.ENV_TIMEOUTS}.stateTypes: {error}") from error


def _seconds(name: str, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= MAX_TIMEOUT_S:
        raise SettingsError(f"{name}: {shown(value)} is not seconds within 0..{MAX_TIMEOUT_S:.0f}")
    return float(value)
