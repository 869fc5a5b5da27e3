"""A session whose other end says nothing."""

import asyncio
import socket
import time

from disagg_fuzz.examples import example
from disagg_transfer.agent.frames import FrameStream
from disagg_transfer.agent.session import Connection
from disagg_transfer.bond import Bond
from disagg_transfer.contract import Role
from disagg_transfer.limits import Heartbeat
from disagg_transfer.protocol import Hello, Identity, Seal, Transcript, Welcome

PEER = Identity(
    namespace="n",
    deployment="d",
    revision="r",
    role=Role.PREFILL,
    pod="p",
    incarnation="1",
    group="0",
    node=0,
    ranks=1,
)
SCRIPT = Transcript(hello=example(Hello), welcome=example(Welcome))


async def test_a_silent_peer_is_lost_at_the_limit_and_not_at_the_beat_after_it():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(FrameStream, *mute.getsockname())
        connection = Connection(
            stream,
            peer=PEER,
            incoming=Seal(bytes(16)),
            outgoing=Seal(bytes(16)),
            bond=Bond(SCRIPT, key=bytes(16), ours=b"dialer", theirs=b"listener"),
            heartbeat=Heartbeat(limit_s=0.6, every_s=0.5),
        )
        began_at = time.monotonic()
        reason = await connection.run(lambda *_: None)
        assert reason == "no heartbeat for 0.6 s"
        assert 0.6 <= time.monotonic() - began_at < 0.9  # the next beat is at 1 s
