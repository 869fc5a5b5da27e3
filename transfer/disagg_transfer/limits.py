"""Limits of an agent that have nothing to do with one request's deadlines; parsed from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from disagg_transfer import contract
from disagg_transfer.errors import SettingsError
from disagg_transfer.strict_json import ShapeError, parse_json, shown

_DAY_S: Final = 24 * 3600.0
_MAX_COUNT: Final = 1 << 44


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineLimits:
    """When unsettled memory poisons a lane."""

    share: float = 0.5  # of the arena, at once: the pod could not serve much with the rest
    lasting_share: float = 0.1  # of the arena, by reads older than lasting_s: it keeps growing
    lasting_s: float = 120.0  # far past what TCP (5 s) or RDMA (21 s) take to give up on a peer
    remake_s: float = 60.0  # poisoned for longer, a lane is made anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A peer that says nothing for `limit_s` is lost; both sides say something every `every_s`."""

    limit_s: float = 3.0
    every_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditLimits:
    """What one peer may have of this pod at a time."""

    nbytes: int = 256 << 20  # being read from one prefill pod: more than any network's delay fills
    reads: int = 64  # of one prefill pod; a read of a small chunk is all overhead
    share: float = 0.5  # of prefill's arena, for one decode pod while there are others


def quarantine_limits(env: Mapping[str, str]) -> QuarantineLimits:
    name = contract.ENV_QUARANTINE
    value = _object(env, name, ("share", "lastingShare", "lastingSeconds", "remakeSeconds"))
    plain = QuarantineLimits()
    return QuarantineLimits(
        share=_within(name, value, "share", plain.share, high=1.0),
        lasting_share=_within(name, value, "lastingShare", plain.lasting_share, high=1.0),
        lasting_s=_within(name, value, "lastingSeconds", plain.lasting_s),
        remake_s=_within(name, value, "remakeSeconds", plain.remake_s),
    )


def credit_limits(env: Mapping[str, str]) -> CreditLimits:
    name = contract.ENV_CREDITS
    value = _object(env, name, ("bytes", "reads", "share"))
    plain = CreditLimits()
    return CreditLimits(
        nbytes=_count(name, value, "bytes", plain.nbytes),
        reads=_count(name, value, "reads", plain.reads),
        share=_within(name, value, "share", plain.share, high=1.0),
    )


def heartbeat(env: Mapping[str, str]) -> Heartbeat:
    """A third of the limit apart, so that one late beat is not a lost peer."""
    name = contract.ENV_HEARTBEAT
    limit_s = _within(name, _object(env, name, ("limitSeconds",)), "limitSeconds", 3.0)
    if limit_s < 0.3:
        raise SettingsError(f"{name}.limitSeconds: {limit_s:g} is less than 0.3")
    return Heartbeat(limit_s=limit_s, every_s=min(1.0, limit_s / 3))


def _object(env: Mapping[str, str], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = parse_json(env.get(name) or "{}")
    except ShapeError as error:
        raise SettingsError(f"{name}: {error}") from error
    if not isinstance(value, dict) or value.keys() - set(known):
        raise SettingsError(f"{name}: must be an object of {', '.join(known)}")
    return value


def _count(name: str, value: Mapping[str, Any], key: str, default: int) -> int:
    found = value.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= _MAX_COUNT:
        raise SettingsError(f"{name}.{key}: {found!r} is not a whole number within 1..{_MAX_COUNT}")
    return found


def _within(
    name: str, value: Mapping[str, Any], key: str, default: float, *, high: float = _DAY_S
) -> float:
    found = value.get(key, default)
    good = isinstance(found, int | float) and not isinstance(found, bool)
    if not good or not 0 <= found <= high:
        raise SettingsError(f"{name}.{key}: {shown(found)} is not a number within 0..{high:g}")
    return float(found)
