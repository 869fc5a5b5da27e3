"""A valid value of any message class, made from its annotations; so a new field is covered too."""

import types
from dataclasses import is_dataclass
from enum import StrEnum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

_SCALARS: dict[type, Any] = {bool: True, int: 1, float: 1.5, str: "x", bytes: b"x"}


def example(hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        inner, limit = get_args(hint)
        return _sized(example(inner), limit)
    if origin in (Union, types.UnionType):
        return example(get_args(hint)[0])
    if origin is tuple:
        return (example(get_args(hint)[0]),)
    if origin is dict:
        key, item = get_args(hint)
        return {example(key): example(item)}
    return _of_class(hint)


def _of_class(kind: type) -> Any:
    if is_dataclass(kind) or issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{name: example(hint) for name, hint in hints.items()})
    return next(iter(kind)) if issubclass(kind, StrEnum) else _SCALARS[kind]


def _sized(value: Any, limit: msgspec.Meta) -> Any:
    if isinstance(value, int):
        return max(value, limit.ge or 0)
    return (
        value * max(limit.min_length or 0, 1) if isinstance(value, str | bytes | tuple) else value
    )
