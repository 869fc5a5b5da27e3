"""Frames of a connection, however the network cuts them."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_transfer.agent.frames import Bounds, FrameStream
from disagg_transfer.codec import frame
from disagg_transfer.errors import WireError

BOUNDS = Bounds(1, 1000)
WITHIN_S = 10
BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=12)
CUTS = st.lists(st.integers(0, 4000), max_size=12)


def pieces(data, cuts):
    places = sorted({cut for cut in cuts if 0 < cut < len(data)})
    starts, ends = [0, *places], [*places, len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


@contextlib.asynccontextmanager
async def joined():
    """A stream and the other end's socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, stream = await asyncio.get_running_loop().create_connection(FrameStream, sock=ours)
    with theirs:
        try:
            yield stream, theirs
        finally:
            stream.transport.abort()
            await asyncio.sleep(0)


@given(BODIES, CUTS, st.integers(0, 12))
def test_they_come_in_order_asked_for_or_handed_on(bodies, cuts, asked):
    async def scene():
        loop, found = asyncio.get_running_loop(), []
        async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):

            async def send():
                for piece in pieces(b"".join(map(frame, bodies)), cuts):
                    await loop.sock_sendall(theirs, piece)
                    await asyncio.sleep(0)
                theirs.shutdown(socket.SHUT_WR)

            sending = asyncio.create_task(send())
            found.extend([await stream.next(BOUNDS) for _ in bodies[:asked]])
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.each(BOUNDS, found.append)
            await sending
        return found

    assert asyncio.run(scene()) == bodies


@pytest.mark.parametrize("length", [0, 1001, 2**32 - 1])
async def test_a_length_out_of_bounds_is_refused_before_its_bytes_are_there(length):
    async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):
        theirs.send(length.to_bytes(4, "big"))
        with pytest.raises(WireError, match=f"frame of {length} bytes is not within 1..1000"):
            await stream.next(BOUNDS)
    async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):
        theirs.send(frame(b"good") + length.to_bytes(4, "big"))
        found = []
        with pytest.raises(WireError, match=f"{length} bytes"):
            await stream.each(BOUNDS, found.append)
        assert found == [b"good"]
        assert stream.transport.is_closing()


async def test_what_the_taker_raises_ends_the_connection_and_comes_out():
    async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):
        found = []

        def take(body):
            found.append(body)
            raise WireError("not that")

        theirs.send(frame(b"one") + frame(b"two"))
        with pytest.raises(WireError, match="not that"):
            await stream.each(BOUNDS, take)
        assert found == [b"one"]
        assert stream.transport.is_closing()


async def test_nothing_is_handed_on_once_the_taker_has_closed_it():
    async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):
        found = []

        def take(body):
            found.append(body)
            stream.transport.abort()

        theirs.send(frame(b"one") + frame(b"two"))
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.each(BOUNDS, take)
        assert found == [b"one"]


async def test_a_sender_whom_nobody_asks_is_held_back():
    """What a stranger can make us keep is bounded by what its next frame may be."""
    loop, found = asyncio.get_running_loop(), []
    async with asyncio.timeout(WITHIN_S), joined() as (stream, theirs):
        bodies = [bytes([number % 256]) * 1000 for number in range(2000)]  # ten socket buffers
        sending = asyncio.create_task(loop.sock_sendall(theirs, b"".join(map(frame, bodies))))
        while stream.transport.is_reading():  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0)
        assert not sending.done()
        found.append(await stream.next(BOUNDS))
        sending.add_done_callback(lambda _: theirs.shutdown(socket.SHUT_WR))
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.each(BOUNDS, found.append)
        assert found == bodies
