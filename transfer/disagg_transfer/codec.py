"""Frozen dataclasses to and from msgpack, strictly.

A message class carries its limits in its annotations: `Annotated[int, Between(0, 9)]` bounds a
value, the same on str, bytes, tuples and dicts bounds a length. Bytes that do not fit are refused
with a WireError that names message and field; a decoded message has been checked whole. Bytes are
walked through before anything is built of them: msgpack makes room for what a header announces, so
4 KB of nested headers without their items would cost 33 MB.
"""

import struct
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgpack

from disagg_transfer.errors import WireError

LENGTH: Final = struct.Struct("!I")  # before every frame, on either socket

_Reader = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Between:
    low: int
    high: int


Room = Annotated[int, Between(0, 2**63 - 1)]
Count = Annotated[int, Between(0, 2**48)]
Name = Annotated[str, Between(1, 253)]
Text = Annotated[str, Between(0, 2048)]
Aux = Annotated[bytes, Between(0, 1 << 20)]


class Codec:
    """A closed set of message classes; the class's name is its tag on the wire."""

    def __init__(self, messages: Iterable[type]) -> None:
        self.kinds = tuple(messages)
        self._readers = {kind.__name__: _record_reader(kind) for kind in self.kinds}
        self._widest = max(2, *(_widest(kind) for kind in self.kinds))

    def encode(self, message: Any) -> bytes:
        packed: bytes = msgpack.packb([type(message).__name__, _plain(message)])
        return packed

    def encode_checked(self, message: Any) -> bytes:
        """WireError where a field is out of its limits, as the reader would raise."""
        name, plain = type(message).__name__, _plain(message)
        self._readers[name](plain, name)
        packed: bytes = msgpack.packb([name, plain])
        return packed

    def decode(self, data: bytes | memoryview) -> Any:
        try:
            _walk(data)
            value = msgpack.unpackb(
                data,
                strict_map_key=True,
                max_array_len=self._widest,
                max_map_len=self._widest,
                max_ext_len=0,
            )
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise WireError(f"not msgpack: {type(error).__name__} {error}") from error
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
            raise WireError("a message is a pair of its name and its fields")
        reader = self._readers.get(value[0])
        if reader is None:
            known = ", ".join(sorted(self._readers))
            raise WireError(f"message {value[0][:64]!r} is not known; known: {known}")
        return reader(value[1], value[0])


def _walk(data: bytes | memoryview) -> None:
    """Raises unless every list and map has the items that it announces; builds nothing."""
    walker = msgpack.Unpacker(max_buffer_size=max(len(data), 1), read_size=1)
    walker.feed(data)
    walker.skip()


def unframed(data: bytearray, *, low: int, high: int) -> bytes | None:
    """Take the first whole frame out of what has come in; None while it is not whole.

    WireError when it has not `low` to `high` bytes, which is known before they are there.
    """
    if len(data) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(data)
    if not low <= length <= high:
        raise WireError(f"frame of {length} bytes is not within {low}..{high}")
    end = LENGTH.size + length
    if len(data) < end:
        return None
    payload = bytes(data[LENGTH.size : end])
    del data[:end]
    return payload


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


_ATOMS: Final = frozenset({int, str, bytes, bool, type(None)})


def _plain(value: Any) -> Any:
    if type(value) in _ATOMS:
        return value
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    return value


def _widest(hint: Any) -> int:
    """The longest list or map that a value of this type may hold, at any depth."""
    if is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return max(len(hints), *map(_widest, hints.values()), 0)
    own = 0
    if get_origin(hint) is Annotated:
        inner, limit = get_args(hint)
        own = limit.high if get_origin(inner) in (tuple, dict) else 0
    return max(own, 0, *(_widest(part) for part in get_args(hint)))


def _record_reader(kind: type) -> _Reader:
    readers = {n: _reader(h) for n, h in get_type_hints(kind, include_extras=True).items()}

    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict) or value.keys() != readers.keys():
            raise WireError(f"{path}: fields must be exactly {', '.join(readers)}")
        return kind(**{n: r(value[n], f"{path}.{n}") for n, r in readers.items()})

    return read


def _reader(hint: Any) -> _Reader:
    origin = get_origin(hint)
    if origin is Annotated:
        inner, limit = get_args(hint)
        return _bounded(_reader(inner), limit)
    if origin in (Union, types.UnionType):
        return _optional(_reader(get_args(hint)[0]))
    if origin is tuple:
        return _many(_reader(get_args(hint)[0]))
    if origin is dict:
        return _mapping(*(_reader(part) for part in get_args(hint)))
    return _class_reader(hint)


def _class_reader(kind: type) -> _Reader:
    if is_dataclass(kind):
        return _record_reader(kind)
    return _member(kind) if issubclass(kind, StrEnum) else _exactly(kind)


def _bounded(inner: _Reader, limit: Between) -> _Reader:
    def read(value: Any, path: str) -> Any:
        result = inner(value, path)
        size = result if isinstance(result, int) else len(result)
        if not limit.low <= size <= limit.high:
            what = "value" if isinstance(result, int) else "length"
            raise WireError(f"{path}: {what} {size} is not within {limit.low}..{limit.high}")
        return result

    return read


def _optional(inner: _Reader) -> _Reader:
    return lambda value, path: None if value is None else inner(value, path)


def _many(inner: _Reader) -> _Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise WireError(f"{path}: {type(value).__name__} is not a list")
        return tuple(inner(item, f"{path}[{i}]") for i, item in enumerate(value))

    return read


def _mapping(key: _Reader, item: _Reader) -> _Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise WireError(f"{path}: {type(value).__name__} is not a map")
        return {key(k, path): item(v, f"{path}[{k!r}]") for k, v in value.items()}

    return read


def _member(kind: type[StrEnum]) -> _Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, str) or value not in kind.__members__.values():
            raise WireError(f"{path}: {value!r:.64} is not one of {', '.join(kind)}")
        return kind(value)

    return read


def _exactly(kind: type) -> _Reader:
    def read(value: Any, path: str) -> Any:
        if type(value) is not kind:
            raise WireError(f"{path}: {type(value).__name__} is not {kind.__name__}")
        return value

    return read
