"""Settings of the operator's process: read once from the environment, refused by name."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.errors import SettingsError

# One level that the standard library knows, and no aliases.
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    # Namespaces to watch; empty means all of them (cluster-wide list and watch).
    namespaces: tuple[str, ...]
    # Images put into pods whose spec names none.
    agent_image: str
    engine_image: str
    router_image: str
    # Port of /healthz and /metrics; 0 picks a free one (tests).
    http_port: int = 8080
    # (namespace, name) of the Lease that one operator at a time holds; None: there is no other.
    lease: tuple[str, str] | None = None
    # (namespace, name) of the Secret that holds the root of all keys; None: it ends with the process.
    root_key: tuple[str, str] | None = None
    log_level: int = logging.INFO
    # Seconds between two passes nobody asked for: repairs what a lost watch event would hide.
    resync_s: float = 300.0
    # Seconds in which wake-ups of one resource become one pass.
    coalesce_s: float = 0.05


def settings_from(environment: Mapping[str, str]) -> Settings:
    return Settings(
        namespaces=_namespaces(environment),
        agent_image=_required(environment, "DISAGG_AGENT_IMAGE"),
        engine_image=_required(environment, "DISAGG_ENGINE_IMAGE"),
        router_image=_required(environment, "DISAGG_ROUTER_IMAGE"),
        http_port=_port(environment, "DISAGG_OPERATOR_PORT", default=8080),
        lease=_object(environment, "DISAGG_LEASE", without="run alone"),
        root_key=_object(environment, "DISAGG_ROOT_KEY", without="make new keys at every start"),
        log_level=_log_level(environment),
    )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is not set: give the image reference that pods run by default")
    return value


def _namespaces(environment: Mapping[str, str]) -> tuple[str, ...]:
    name = "DISAGG_WATCH_NAMESPACES"
    parts = [part.strip() for part in environment.get(name, "").split(",")]
    namespaces = tuple(dict.fromkeys(part for part in parts if part))
    for namespace in namespaces:
        if not _NAMESPACE.fullmatch(namespace):
            raise SettingsError(
                f"{name} holds {namespace!r}, which is no namespace name: "
                "give names separated by commas, or leave it empty to watch all namespaces"
            )
    return namespaces


def _object(
    environment: Mapping[str, str], variable: str, *, without: str
) -> tuple[str, str] | None:
    text = environment.get(variable, "")
    if not text:
        return None
    namespace, _, name = text.partition("/")
    if not (_NAMESPACE.fullmatch(namespace) and _NAMESPACE.fullmatch(name)):
        raise SettingsError(
            f"{variable} is {text!r}: give NAMESPACE/NAME, or leave it empty to {without}"
        )
    return namespace, name


def _port(environment: Mapping[str, str], name: str, *, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit() or int(text) > 65535:
        raise SettingsError(f"{name} is {text!r}: give a port number from 0 to 65535")
    return int(text)


def _log_level(environment: Mapping[str, str]) -> int:
    text = environment.get("DISAGG_LOG_LEVEL", "INFO").upper()
    if text not in LOG_LEVELS:
        raise SettingsError(f"DISAGG_LOG_LEVEL is {text!r}: give one of {', '.join(LOG_LEVELS)}")
    return logging.getLevelNamesMapping()[text]
