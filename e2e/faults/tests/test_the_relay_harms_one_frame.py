"""The man in the middle does to a frame what it is told, and to no other."""

import contextlib
import socket

import pytest

from disagg_faults.relay import LENGTH, Blow, Corruption, Direction, FaultyRelay, corrupted

FRAMES = [b"first frame", b"second", b"third one"]


def framed(payload):
    return LENGTH.pack(len(payload)) + payload


def blow(corruption, *, direction=Direction.TO_PREFILL, after=1, bit=13, stall_s=0.0):
    return Blow(corruption=corruption, direction=direction, after=after, bit=bit, stall_s=stall_s)


@pytest.fixture
def line():
    """The dialer's end, the listener's end, and the relay between them."""
    far_listener = socket.create_server(("127.0.0.1", 0))
    relay = FaultyRelay(
        socket.create_server(("127.0.0.1", 0)),
        connect=lambda: socket.create_connection(far_listener.getsockname()),
    )
    near = socket.create_connection(("127.0.0.1", relay.port))
    far, _ = far_listener.accept()
    far_listener.close()
    near.settimeout(5)
    far.settimeout(5)
    yield near, far, relay
    near.close()
    far.close()
    relay.close()


def sent(near, far, frames=FRAMES):
    """Everything that comes out at the far end."""
    near.sendall(b"".join(framed(payload) for payload in frames))
    with contextlib.suppress(OSError):  # a severed line is closed already
        near.shutdown(socket.SHUT_WR)
    data = b""
    while part := far.recv(4096):
        data += part
    return data


FIRST, SECOND, THIRD = map(framed, FRAMES)


@pytest.mark.parametrize(
    ("corruption", "expected"),
    [
        (None, FIRST + SECOND + THIRD),
        (Corruption.DROP, FIRST + THIRD),
        (Corruption.DUPLICATE, FIRST + SECOND + SECOND + THIRD),
        (Corruption.REORDER, FIRST + THIRD + SECOND),
        (Corruption.TRUNCATE, FIRST + SECOND[:5] + THIRD),
        (Corruption.SEVER, FIRST),
        (Corruption.STALL, FIRST + SECOND + THIRD),
    ],
)
def test_one_frame_is_harmed_as_told(line, corruption, expected):
    near, far, relay = line
    if corruption:
        relay.strike(blow(corruption, bit=4))
    assert sent(near, far) == expected


def test_one_bit_is_flipped(line):
    near, far, relay = line
    relay.strike(blow(Corruption.FLIP))
    data = sent(near, far)
    harmed = data[len(FIRST) : -len(THIRD)]
    assert [a ^ b for a, b in zip(harmed, SECOND, strict=True)] == [0, 1 << 5] + [0] * 8


@pytest.mark.parametrize("bit", range(80))
def test_any_bit_number_is_a_bit_of_the_frame(bit):
    frame = framed(b"abcdef")
    harmed = corrupted(frame, blow(Corruption.FLIP, bit=bit))
    assert sum((a ^ b).bit_count() for a, b in zip(harmed, frame, strict=True)) == 1
    assert 0 < len(corrupted(frame, blow(Corruption.TRUNCATE, bit=bit))) < len(frame)


def test_a_stalled_frame_comes_later(line):
    near, far, relay = line
    relay.strike(blow(Corruption.STALL, stall_s=0.3))
    near.sendall(FIRST + SECOND)
    assert far.recv(len(FIRST), socket.MSG_WAITALL) == FIRST
    far.settimeout(0.1)
    with pytest.raises(TimeoutError):
        far.recv(1)
    far.settimeout(5)
    assert far.recv(len(SECOND), socket.MSG_WAITALL) == SECOND


def test_the_other_direction_is_left_alone(line):
    near, far, relay = line
    relay.strike(blow(Corruption.DROP, direction=Direction.TO_DECODE, after=0))
    far.sendall(FIRST + SECOND)
    assert near.recv(len(SECOND), socket.MSG_WAITALL) == SECOND
    assert sent(near, far) == FIRST + SECOND + THIRD


def test_a_lifted_blow_strikes_nothing(line):
    near, far, relay = line
    relay.strike(blow(Corruption.DROP))
    relay.lift()
    assert sent(near, far) == FIRST + SECOND + THIRD


def test_an_end_that_closes_closes_the_other(line):
    near, far, _ = line
    far.close()
    assert near.recv(1) == b""
