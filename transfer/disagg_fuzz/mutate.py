"""Valid bytes made wrong in ways that a parser trips over: the bytes themselves, and their sense.

Every choice comes from the `Random` that is handed in, so a seed is a reproduction.
"""

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import msgspec

MAX_BYTES: Final = 4 << 20  # no frame is longer, so no input need be
_DEPTHS: Final = (3, 900, 1100, 100_000)
_ODD_NUMBERS: Final = (0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
_ODD_TEXTS: Final = ("", "\0", "a" * 254, "..", "\u202e", "🙂" * 100, "NaN", "[::1]", "-1", " ")
# Heads of msgpack lists, maps, texts, bytes and extensions that announce far more than follows.
_BOMBS: Final = tuple(
    bytes([head]) + b"\xff" * width
    for head, width in ((0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4), (0xDB, 4), (0xC6, 4), (0xC9, 5))
)
_JSON_BOMBS: Final = (b"[", b'{"a":', b'[{"a":', b"[[],")

Mutation = Callable[[Random, bytes], bytes]


def _flip(rng: Random, data: bytes) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 16))):
        place = rng.randrange(len(out) * 8)
        out[place // 8] ^= 1 << place % 8
    return bytes(out)


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _extend(rng: Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 4, 300)))


def _splice(rng: Random, data: bytes) -> bytes:
    """A part of it, somewhere else in it."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 4096))
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[start : start + length] + data[place:]


def _bomb(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        return data[:place] + rng.choice(_BOMBS) + data[place:]
    return (data[:place] + rng.choice(_BOMBS + _JSON_BOMBS) * rng.choice(_DEPTHS))[:MAX_BYTES]


def _stranger(rng: Random, _data: bytes) -> bytes:
    return rng.choice((b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", rng.randbytes(64)))


def _reworded(rng: Random, data: bytes) -> bytes:
    """Parsed, one value anywhere in it exchanged, and written again."""
    for load, dump in (
        (msgspec.msgpack.decode, msgspec.msgpack.encode),
        (json.loads, _to_json),
    ):
        try:
            value = load(data)
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
            continue
        try:
            written: bytes = dump(_exchanged(rng, value))
        except (ValueError, TypeError, OverflowError):  # of msgpack: beyond 64 bits
            continue
        return written
    return _flip(rng, data)


def _doubled(_rng: Random, data: bytes) -> bytes:
    """JSON whose keys are all there twice."""
    return data.replace(b"{", b'{"version":2,"default":0,', 1)


_MUTATIONS: Final[Sequence[Mutation]] = (
    _flip, _cut, _extend, _splice, _bomb, _stranger, _reworded, _reworded, _reworded, _doubled,
)  # fmt: skip


def mutate(rng: Random, data: bytes) -> bytes:
    """One to three things wrong with `data`, at most MAX_BYTES long."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_MUTATIONS)(rng, data)
    return data[:MAX_BYTES]


def _to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _exchanged(rng: Random, value: Any) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], _exchanged(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _exchanged(rng, value[key])}
    return _odd(rng, value)


def _odd(rng: Random, value: Any) -> Any:
    """Something of another kind or beyond a limit, where `value` was."""
    nested: Any = value
    for _ in range(rng.choice((1, 50))):
        nested = [nested]
    odd: tuple[Any, ...] = (
        rng.choice(_ODD_NUMBERS), 10 ** rng.choice((20, 400)), rng.choice(_ODD_TEXTS), None, True,
        math.nan, math.inf, 1e308, -0.0, [], {}, {"a": value}, nested, [value] * 300, "\ud800",
        f"{value}x", value,
    )  # fmt: skip
    return rng.choice(odd)
