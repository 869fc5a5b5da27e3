"""Frozen dataclasses to and from JSON, strictly; standard library only, as the contract needs.

Wire names are camelCase. A field may carry `since(version, default)`: bytes of an older version
must not have it and are read with the default, those of its version and later must have it.
"""

import json
import math
import re
import types
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

_SINCE: Final = "since"
_ABSENT: Final = "absent"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # JSON can say it, no UTF-8 writer can
_MAX_WHOLE: Final = 2**53  # beyond it a float is not the number that was said


class ShapeError(ValueError):
    """A value is not what the class says; the message names the field."""


def since(version: int, absent: Any) -> Any:
    """A field that wire version `version` brought; `absent` is what older bytes mean."""
    return field(metadata={_SINCE: version, _ABSENT: absent})


def to_json(value: Any) -> bytes:
    return json.dumps(_plain(value), separators=(",", ":")).encode()


def parse_json(data: bytes | str) -> Any:
    """What json.loads makes of it; raises ShapeError, for NaN and bottomless nesting too."""
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"not JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def shown(value: Any) -> str:
    """For a message: never long, and no walk into what may be nested a thousand deep."""
    nested = isinstance(value, list | dict) and value
    return type(value).__name__ if nested else f"{value!r:.64}"


_T = TypeVar("_T")


def from_json(kind: type[_T], value: Any, *, path: str, version: int) -> _T:
    """`value` as `parse_json` made it; raises ShapeError."""
    return _Reader(version).record(kind, value, path)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {_camel(f.name): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class _Reader:
    version: int

    def record(self, kind: type[_T], value: Any, path: str) -> _T:
        if not isinstance(value, dict):
            raise ShapeError(f"{path}: {shown(value)} is not an object")
        hints = get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        newer = {n: f for n, f in known.items() if f.metadata.get(_SINCE, 0) > self.version}
        named = {_camel(name): name for name in known if name not in newer}
        for key in value:
            if key not in named:
                told = ", ".join(sorted(named))
                raise ShapeError(f"{path}.{key:.64}: unknown field; known: {told}")
        for key in named:
            if key not in value:
                raise ShapeError(f"{path}.{key}: missing")
        read = {n: self._typed(hints[n], value[k], f"{path}.{k}") for k, n in named.items()}
        return kind(**read, **{name: f.metadata[_ABSENT] for name, f in newer.items()})

    def _typed(self, hint: Any, value: Any, path: str) -> Any:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return None if value is None else self._typed(get_args(hint)[0], value, path)
        if origin is tuple:
            if not isinstance(value, list):
                raise ShapeError(f"{path}: {shown(value)} is not a list")
            inner = get_args(hint)[0]
            return tuple(self._typed(inner, item, f"{path}[{i}]") for i, item in enumerate(value))
        if isinstance(hint, type) and is_dataclass(hint):
            return self.record(hint, value, path)
        if issubclass(hint, StrEnum):
            return _member(hint, value, path)
        return _scalar(hint, value, path)


def _member(kind: type[StrEnum], value: Any, path: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError as error:
        raise ShapeError(f"{path}: {shown(value)} is not one of {', '.join(kind)}") from error


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < _MAX_WHOLE else math.inf
    if type(value) is not kind or value in (math.inf, -math.inf):
        raise ShapeError(f"{path}: {shown(value)} is not a {kind.__name__}")
    if kind is str and not value.isascii() and _SURROGATE.search(value):
        raise ShapeError(f"{path}: half a surrogate pair is no text")
    return value
