"""Every parser that foreign bytes reach, valid bytes to start from, and what it may raise."""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import parse_qsl

from disagg_fuzz.examples import example
from disagg_transfer import contract
from disagg_transfer.agent.admin import parse_line
from disagg_transfer.agent.http import parse_query
from disagg_transfer.codec import LENGTH, Codec
from disagg_transfer.contract import REPORT_VERSION, Report, ReportError, parse_report
from disagg_transfer.engine_messages import ANSWERS, CALLS
from disagg_transfer.errors import SettingsError, WireError
from disagg_transfer.protocol import HANDSHAKE, MAX_HANDSHAKE_BYTES, SESSION, Ping, Seal
from disagg_transfer.settings import from_environment, parse_address

_TIMEOUTS: Final = b'{"default": 30, "stages": {"queue": 120.5}, "stateTypes": {"mamba": 3}}'
_SEAL_KEY: Final = b"k" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`parse` returns, or raises one of `refusals`; anything else is a find."""

    name: str
    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    max_bytes: int = 4 << 20


def _of_codec(name: str, codec: Codec, *, max_bytes: int = 4 << 20) -> Target:
    return Target(
        name=name,
        parse=codec.decode,
        refusals=(WireError,),
        seeds=tuple(codec.encode(example(kind)) for kind in codec.kinds),
        max_bytes=max_bytes,
    )


def _open_sealed(body: bytes) -> Any:
    return Seal(_SEAL_KEY).open(body)


def _report() -> bytes:
    report: Report = dataclasses.replace(example(Report), version=REPORT_VERSION)
    return report.to_json()


def _ask_report(query: bytes) -> Any:
    return parse_query(dict(parse_qsl(query.decode("latin-1"))))


def _set(variable: str) -> Callable[[bytes], Any]:
    """One environment variable is foreign, the others are as the operator sets them."""
    return functools.partial(_settings, variable)


def _settings(variable: str, value: bytes) -> Any:
    with TemporaryDirectory() as folder:
        key = Path(folder, "key")
        key.write_bytes(value if variable == contract.ENV_KEY_FILE else b"0" * 64)
        names = (
            contract.ENV_NAMESPACE, contract.ENV_DEPLOYMENT, contract.ENV_REVISION, contract.ENV_POD
        )  # fmt: skip
        env = dict.fromkeys(names, "x") | {contract.ENV_ROLE: "decode"}
        if variable != contract.ENV_KEY_FILE:
            env[variable] = value.replace(b"\0", b"").decode("utf-8", "surrogateescape")
        return from_environment({**env, contract.ENV_KEY_FILE: str(key)})


def _of_setting(name: str, variable: str, *seeds: bytes) -> Target:
    limit = 128 << 10  # the kernel's, of one variable
    return Target(
        name=name, parse=_set(variable), refusals=(SettingsError,), seeds=seeds, max_bytes=limit
    )


TARGETS: Final = (
    _of_codec("handshake", HANDSHAKE, max_bytes=MAX_HANDSHAKE_BYTES),
    _of_codec("session", SESSION),
    _of_codec("calls", CALLS),
    _of_codec("answers", ANSWERS),
    Target(
        name="seal",
        parse=_open_sealed,
        refusals=(WireError,),
        seeds=(Seal(_SEAL_KEY).close(Ping())[LENGTH.size :],),
    ),
    Target(name="report", parse=parse_report, refusals=(ReportError,), seeds=(_report(),)),
    Target(
        name="query",
        parse=_ask_report,
        refusals=(ValueError,),
        seeds=(b"cursor=7&wait_s=20",),
        max_bytes=8 << 10,  # aiohttp takes no longer line
    ),
    Target(
        name="admin",
        parse=parse_line,
        refusals=(ValueError,),
        seeds=(json.dumps(["fault", "withhold", "mamba"]).encode(),),
        max_bytes=64 << 10,  # asyncio reads no longer line
    ),
    Target(
        name="address",
        parse=lambda data: parse_address(data.decode("utf-8", "replace")),
        refusals=(SettingsError,),
        seeds=(b"prefill-0.pods.default.svc:8998", b"[::1]:8998", b"10.0.0.1"),
        max_bytes=2048,
    ),
    _of_setting("timeouts", contract.ENV_TIMEOUTS, _TIMEOUTS),
    _of_setting("quarantine", contract.ENV_QUARANTINE, b'{"share": 0.5, "lastingSeconds": 120}'),
    _of_setting("heartbeat", contract.ENV_HEARTBEAT, b'{"limitSeconds": 3}'),
    _of_setting("types", contract.ENV_STATE_TYPES, b"kv,dsa,swa_ring"),
    _of_setting("ports", contract.ENV_DATA_PORTS, b"21000-21999"),
    _of_setting("numbers", contract.ENV_ARENA_BYTES, b"268435456"),
    _of_setting("key", contract.ENV_KEY_FILE, b"0f" * 32 + b"\n", bytes(range(200, 232))),
)
