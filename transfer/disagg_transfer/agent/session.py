"""One authenticated connection to another agent, and the sessions of rank pairs that share it.

Two pods have one connection: handshake, sealed frames, heartbeats. A session is what one engine
rank here and one there have of it, and all that a desk ever sees; it lives as long as the
connection.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Any, Final

from disagg_transfer.agent.fabric_link import FabricLink
from disagg_transfer.agent.frames import Bounds, FrameStream
from disagg_transfer.bond import Bond
from disagg_transfer.codec import frame
from disagg_transfer.contract import Role, key_id
from disagg_transfer.errors import WireError
from disagg_transfer.layout import Difference
from disagg_transfer.limits import Heartbeat
from disagg_transfer.protocol import (
    HANDSHAKE,
    HEAD_BYTES,
    MAX_FRAME_BYTES,
    MAX_HANDSHAKE_BYTES,
    PROTOCOL_VERSION,
    WHOLE_POD,
    Hello,
    Holds,
    Identity,
    Layout,
    Ping,
    Proof,
    RankPair,
    Seal,
    Transcript,
    Welcome,
    check_identity,
    check_proof,
    proved_key,
)

HANDSHAKE_S: Final = 5.0
_MAX_UNSENT_BYTES: Final = 8 << 20  # a peer that does not read is as good as gone
_FRAME: Final = Bounds(HEAD_BYTES + 1, MAX_FRAME_BYTES)
_HANDSHAKE: Final = Bounds(1, MAX_HANDSHAKE_BYTES)

_log = logging.getLogger(__name__)


class Session:
    """One rank of this pod and one of the peer's."""

    def __init__(self, connection: "Connection", pair: RankPair) -> None:
        self.pair = pair
        self.layout: Layout | None = None  # of the peer's engine; None while none is registered
        self.differences: tuple[Difference, ...] = ()
        self.fabric: FabricLink | None = None  # decode: how our lane reads from the peer's
        self._connection = connection

    @property
    def connection(self) -> "Connection":
        return self._connection

    @property
    def peer(self) -> Identity:
        return self._connection.peer

    @property
    def ended(self) -> asyncio.Event:
        return self._connection.ended

    @property
    def ours(self) -> int:
        return self.pair.decode if self.peer.role is Role.PREFILL else self.pair.prefill

    @property
    def theirs(self) -> int:
        return self.pair.prefill if self.peer.role is Role.PREFILL else self.pair.decode

    @property
    def usable(self) -> bool:
        fabric = self.fabric
        return self.layout is not None and not self.differences and fabric is not None and fabric.up

    @property
    def fabric_name(self) -> str:
        """Of the peer's lane, as ours knows it."""
        return self.fabric.name if self.fabric else fabric_name(self.peer, self.theirs)

    @property
    def meeting(self) -> bool:
        """Its fabric is about to be loaded for the first time."""
        known = self.fabric is not None and (self.fabric.met or self.fabric.reason)
        return self.layout is not None and not self.differences and not known

    def vacate(self) -> None:
        """The peer's engine has gone, or is no longer a partner of ours."""
        self.layout, self.differences = None, ()

    def send(self, *messages: Any) -> None:
        """Queue messages; a lost connection swallows them, and its loss is told by its end."""
        self._connection.send(*messages, pair=self.pair)

    def close(self, reason: str) -> None:
        """End the whole connection: the peer has said what a sound one never does."""
        self._connection.close(reason)


class Connection:
    """Frames both ways until the connection closes, falls silent or says something false."""

    def __init__(
        self,
        stream: FrameStream,
        *,
        peer: Identity,
        incoming: Seal,
        outgoing: Seal,
        bond: Bond,
        heartbeat: Heartbeat,
    ) -> None:
        self.peer = peer
        self.bond = bond
        self._heartbeat = heartbeat
        self.layouts: dict[int, Layout] = {}  # of the peer's engines, by rank
        self.ended = asyncio.Event()
        now = asyncio.get_running_loop().time()
        self._vacant_since = dict.fromkeys(peer.held, now)
        self._sessions: dict[RankPair, Session] = {}
        self._stream = stream
        self._incoming, self._outgoing = incoming, outgoing
        self._reason = ""
        self._heard = now
        # asyncio sets this only on sockets made with an explicit protocol; without it a small
        # message waits 40 ms for the acknowledgment of the one before.
        plain = self._stream.transport.get_extra_info("socket")
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    def session(self, pair: RankPair) -> Session:
        """The one of this pair; whoever asks knows that both ranks are of these two pods."""
        found = self._sessions.get(pair)
        if found is None:
            found = self._sessions[pair] = Session(self, pair)
        return found

    @property
    def silent_s(self) -> float:
        """Since the peer last said anything."""
        return asyncio.get_running_loop().time() - self._heard

    def vacate(self, rank: int) -> None:
        """The peer's engine of this rank has gone."""
        self.layouts.pop(rank, None)
        self._vacant_since[rank] = asyncio.get_running_loop().time()
        for session in self.sessions:
            if session.theirs == rank:
                session.vacate()

    def vacant_for(self, rank: int) -> float:
        """Seconds that the peer has been without an engine of this rank; it has none now."""
        return asyncio.get_running_loop().time() - self._vacant_since[rank]

    def send(self, *messages: Any, pair: RankPair = WHOLE_POD) -> None:
        """Queue messages; a lost connection swallows them, and its loss is reported by `run`."""
        if not messages or self.ended.is_set() or self._stream.transport.is_closing():
            return
        frames = (self._outgoing.close(message, pair) for message in messages)
        self._stream.write(b"".join(frames))
        if self._stream.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self.close(f"{_MAX_UNSENT_BYTES} bytes unsent: the peer does not read")

    def close(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stream.transport.abort()

    async def run(self, on_message: Callable[["Connection", RankPair, Any], None]) -> str:
        """Serve until the end; returns why it ended."""
        beat = asyncio.create_task(self._beat())
        try:
            await self._stream.each(_FRAME, lambda data: self._take(data, on_message))
        except asyncio.IncompleteReadError:
            return self._reason or "its control connection closed: the agent ended or restarts"
        except OSError as error:
            return self._reason or f"its control connection broke: {error}"
        except WireError as error:
            return f"refused frame: {error}"
        finally:
            beat.cancel()
            self.ended.set()
            self._stream.transport.abort()

    def _take(self, data: bytes, on_message: Callable[["Connection", RankPair, Any], None]) -> None:
        pair, message = self._incoming.open(data)
        self._heard = asyncio.get_running_loop().time()
        if isinstance(message, Holds):
            self.bond.claim(message)
        elif not isinstance(message, Ping):
            on_message(self, pair, message)

    async def _beat(self) -> None:
        """Silence is looked at when its limit is reached, not only at the next beat."""
        loop, heartbeat = asyncio.get_running_loop(), self._heartbeat
        while True:
            before = loop.time()
            self.send(Ping())
            left_s = self._heard + heartbeat.limit_s - before
            await asyncio.sleep(min(heartbeat.every_s, max(left_s, 0.0)))
            now = loop.time()
            if now - before > 2 * heartbeat.every_s:
                self._heard = now  # it was this process that stood still, not the peer
            elif now - self._heard >= heartbeat.limit_s:
                self.close(f"no heartbeat for {now - self._heard:.1f} s")
                return


def fabric_name(identity: Identity, rank: int, *, generation: int = 0) -> str:
    """NIXL's name of a lane: a restarted agent's is another, so its old metadata never serves,
    and so is that of a lane that was made anew.
    """
    name = f"{identity.namespace}/{identity.pod}/{identity.incarnation}/{rank}"
    return f"{name}/{generation}" if generation else name


async def greet(
    stream: FrameStream,
    *,
    us: Identity,
    keys: tuple[bytes, ...],
    heartbeat: Heartbeat,
) -> Connection:
    """The dialer's half of the handshake."""
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        identity=us,
        nonce=secrets.token_bytes(32),
        keys=tuple(key_id(key) for key in keys),
    )
    stream.write(frame(HANDSHAKE.encode(hello)))
    welcome = await _expect(stream, Welcome)
    script = Transcript(hello=hello, welcome=welcome)
    key = proved_key(script, keys=keys, purpose=b"listener", proof=welcome.proof)
    check_identity(us, welcome.identity, protocol=welcome.protocol)
    stream.write(frame(HANDSHAKE.encode(Proof(proof=script.derive(key, b"dialer")))))
    return Connection(
        stream,
        peer=welcome.identity,
        incoming=Seal(script.derive(key, b"listener to dialer")),
        outgoing=Seal(script.derive(key, b"dialer to listener")),
        bond=Bond(script, key=key, ours=b"dialer", theirs=b"listener"),
        heartbeat=heartbeat,
    )


async def receive(
    stream: FrameStream,
    *,
    us: Identity,
    keys: tuple[bytes, ...],
    heartbeat: Heartbeat,
) -> Connection:
    """The listener's half. Nothing of the stranger's is kept until its proof is right."""
    hello = await _expect(stream, Hello)
    bare = Welcome(protocol=PROTOCOL_VERSION, identity=us, nonce=secrets.token_bytes(32), proof=b"")
    script = Transcript(hello=hello, welcome=bare)
    named = {key_id(key): key for key in keys}
    # Without a common one the dialer shall find out by itself and tell its own side.
    key = next((named[name] for name in hello.keys if name in named), keys[0])
    welcome = Welcome(
        protocol=bare.protocol,
        identity=us,
        nonce=bare.nonce,
        proof=script.derive(key, b"listener"),
    )
    stream.write(frame(HANDSHAKE.encode(welcome)))
    proof = await _expect(stream, Proof)
    check_proof(script, key=key, purpose=b"dialer", proof=proof.proof)
    check_identity(us, hello.identity, protocol=hello.protocol)
    return Connection(
        stream,
        peer=hello.identity,
        incoming=Seal(script.derive(key, b"dialer to listener")),
        outgoing=Seal(script.derive(key, b"listener to dialer")),
        bond=Bond(script, key=key, ours=b"listener", theirs=b"dialer"),
        heartbeat=heartbeat,
    )


async def _expect(stream: FrameStream, kind: type) -> Any:
    message = HANDSHAKE.decode(await stream.next(_HANDSHAKE))
    if not isinstance(message, kind):
        raise WireError(f"{type(message).__name__} came where {kind.__name__} was due")
    return message
