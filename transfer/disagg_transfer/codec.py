"""Messages to and from msgpack, strictly: msgspec checks each while it builds it.

A message class carries its limits in its annotations: `Annotated[int, within(0, 9)]` bounds a
value, `Annotated[str, sized(1, 253)]` a length, on bytes, tuples and dicts too. Bytes that do not
fit are refused with a WireError that names message and field; nothing is built of a header that
announces more than follows.
"""

import struct
from collections.abc import Iterable
from typing import Annotated, Any, Final, Union

import msgspec

from disagg_transfer.errors import WireError

LENGTH: Final = struct.Struct("!I")  # before every frame, on either socket
_MAX_TOLD: Final = 512  # characters of what is wrong: it may hold what a stranger sent


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A part of a message; `gc=False`, since none can hold itself."""


class Message(Record, tag=True, frozen=True, gc=False):
    """The class's name is its tag on the wire."""


class _Tagged(msgspec.Struct):
    type: str = ""


def within(low: int, high: int) -> msgspec.Meta:
    return msgspec.Meta(ge=low, le=high)


def sized(low: int, high: int) -> msgspec.Meta:
    return msgspec.Meta(min_length=low, max_length=high)


Room = Annotated[int, within(0, 2**63 - 1)]
Count = Annotated[int, within(0, 2**48)]
Name = Annotated[str, sized(1, 253)]
Text = Annotated[str, sized(0, 2048)]
Aux = Annotated[bytes, sized(0, 1 << 20)]

_ENCODER: Final = msgspec.msgpack.Encoder()
_UNFIT: Final = (msgspec.MsgspecError, RecursionError, UnicodeError, OverflowError, TypeError)


class Codec:
    """A closed set of message classes."""

    def __init__(self, messages: Iterable[type[Message]]) -> None:
        self.kinds = tuple(messages)
        self._decoder = msgspec.msgpack.Decoder(Union[self.kinds])  # noqa: UP007  (of a tuple)

    def encode(self, message: Message) -> bytes:
        return _ENCODER.encode(message)

    def encode_checked(self, message: Message) -> bytes:
        """WireError where a field is out of its limits, as the reader would raise."""
        try:
            data = _ENCODER.encode(message)
        except _UNFIT as error:
            raise WireError(f"{type(message).__name__}: {error!s:.{_MAX_TOLD}}") from error
        self.decode(data)
        return data

    def decode(self, data: bytes | memoryview) -> Any:
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise WireError(self._told(data, error)) from error
        except _UNFIT as error:
            raise WireError(f"not msgpack: {type(error).__name__} {error}") from error

    def _told(self, data: bytes | memoryview, error: Exception) -> str:
        name, known = _tag(data), sorted(kind.__name__ for kind in self.kinds)
        if name and name not in known:
            return f"message {name[:64]!r} is not known; known: {', '.join(known)}"
        return f"{name or 'no message'}: {error!s:.{_MAX_TOLD}}"


def _tag(data: bytes | memoryview) -> str:
    """Of a message that is refused; empty where it has none."""
    try:
        return msgspec.msgpack.decode(data, type=_Tagged).type
    except _UNFIT:
        return ""


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
