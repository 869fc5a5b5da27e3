"""The control port: prefill listens, decode dials every prefill pod of its revision."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from disagg_transfer.agent.backoff import BackOff
from disagg_transfer.agent.frames import FrameStream, accepting
from disagg_transfer.agent.key_ring import KeyRing
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.peers import Peers
from disagg_transfer.agent.ports import listen, serve
from disagg_transfer.agent.session import HANDSHAKE_S, Connection, greet, receive
from disagg_transfer.agent.waiting_room import WaitingRoom
from disagg_transfer.contract import Cause, PeerReport, PeerState, Stage
from disagg_transfer.errors import AuthenticationError, SettingsError, TransferFailed, WireError
from disagg_transfer.settings import Address, parse_address

MAX_STRANGERS: Final = 64  # connections that have not proved themselves yet
RESOLVE_S: Final = 1.0
DIAL_CEILING_S: Final = 2.0  # between two dials: a restarted pod is served this soon
STEADY_S: Final = 5.0  # a connection that lasted so long was no failure to connect
KEEP_WANTED_S: Final = 60.0  # an address only a request named is dialed on for this long

_log = logging.getLogger(__name__)


class Listener:
    """Takes peers in. A stranger is turned away, counted, and changes nothing."""

    def __init__(self, peers: Peers, *, ring: KeyRing, metrics: Metrics) -> None:
        self._peers, self._ring = peers, ring
        self._strangers = WaitingRoom(
            seats=MAX_STRANGERS,
            count=lambda reason: metrics.refusals.labels(reason).inc(),
            what="control port",
        )
        self.port = 0

    async def run(self, port: int) -> None:
        sock = listen(port)
        self.port = sock.getsockname()[1]
        loop = asyncio.get_running_loop()
        await serve(await loop.create_server(accepting(self._accept), sock=sock))

    async def _accept(self, stream: FrameStream) -> None:
        self._strangers.enter(stream.transport)
        try:
            connection = await self._meet(stream)
        except AuthenticationError as error:
            self._refuse("authentication", stream, str(error))
        except TimeoutError:
            self._refuse("timeout", stream, f"no handshake within {HANDSHAKE_S:.0f} s")
        except (WireError, OSError, asyncio.IncompleteReadError) as error:
            self._refuse("protocol", stream, str(error))
        else:
            if self._strangers.leave(stream.transport):
                await self._peers.serve(connection)

    async def _meet(self, stream: FrameStream) -> Connection:
        async with asyncio.timeout(HANDSHAKE_S):
            return await receive(
                stream,
                us=self._peers.us,
                keys=self._ring.keys,
                heartbeat=self._peers.heartbeat,
            )

    def _refuse(self, reason: str, stream: FrameStream, detail: str) -> None:
        if self._strangers.leave(stream.transport):  # else it was turned away, and counted
            self._strangers.turn_away(stream.transport, reason, detail)


@dataclass(slots=True)
class _Link:
    """One address of a prefill agent and what became of dialing it."""

    address: Address
    task: "asyncio.Task[None] | None" = None
    connection: Connection | None = None
    error: str = "not tried yet"
    refused: bool = False  # authentication failed: waiting will not help
    wanted_until: float = 0.0
    named: bool = field(default=False)  # the peer service has it


class Dialer:
    def __init__(self, peers: Peers, *, ring: KeyRing, services: tuple[Address, ...]) -> None:
        self._peers, self._ring, self._services = peers, ring, services
        self._links: dict[Address, _Link] = {}

    @property
    def links(self) -> Iterable[_Link]:
        return self._links.values()

    async def run(self) -> None:
        """Keep a link to every address of the peer service."""
        try:
            while True:
                found: set[Address] = set()
                for service in self._services:
                    found |= await _resolve(service)
                self._follow(found)
                await asyncio.sleep(RESOLVE_S)
        finally:
            for link in self._links.values():
                if link.task is not None:
                    link.task.cancel()

    async def connections(self, peer: str) -> list[Connection]:
        """Those open to an address that a request names, which is dialed from now on."""
        try:
            target = parse_address(peer)
        except SettingsError as error:
            raise bootstrap_failure(Cause.PROTOCOL_ERROR, f"peer {error}") from error
        links = [self._want(address) for address in await _resolve(target)]
        found = [link.connection for link in links if link.connection is not None]
        refused = next((link for link in links if link.refused), None)
        if refused is not None and not found:
            detail = f"{refused.address}: {refused.error}"
            raise bootstrap_failure(Cause.AUTHENTICATION_FAILED, detail)
        return found

    async def obstacle(self, peer: str, *, within_s: float) -> TransferFailed:
        """Why no connection to it is open after that time."""
        found = await _resolve(parse_address(peer))
        links = [self._links[address] for address in found if address in self._links]
        detail = f"{peer} did not resolve to an address within {within_s:g} s"
        if links:
            detail = f"{links[0].address} not met within {within_s:g} s: {links[0].error}"
        return bootstrap_failure(Cause.PEER_UNREACHABLE, detail)

    def reports(self) -> tuple[PeerReport, ...]:
        """Links without a connection; those with one are in `Peers.reports`."""
        return tuple(
            PeerReport(
                pod=str(link.address),
                incarnation="",
                state=PeerState.CONNECTING,
                detail=link.error,
            )
            for link in self._links.values()
            if link.connection is None
        )

    def _follow(self, found: set[Address]) -> None:
        for address in found - self._links.keys():
            self._links[address] = _Link(address)
        for address, link in list(self._links.items()):
            link.named = address in found
            if not self._keeps(link) and link.connection is None:
                del self._links[address]
            elif link.task is None or link.task.done():
                link.task = asyncio.create_task(self._keep(link))

    def _want(self, address: Address) -> _Link:
        link = self._links.setdefault(address, _Link(address))
        link.wanted_until = asyncio.get_running_loop().time() + KEEP_WANTED_S
        if link.task is None or link.task.done():
            link.task = asyncio.create_task(self._keep(link))
        return link

    def _keeps(self, link: _Link) -> bool:
        return link.named or link.wanted_until > asyncio.get_running_loop().time()

    async def _keep(self, link: _Link) -> None:
        """Dial, serve, and dial again until nobody wants the address."""
        backoff, loop = BackOff(ceiling_s=DIAL_CEILING_S), asyncio.get_running_loop()
        while self._keeps(link):
            dialed_at = loop.time()
            try:
                connection = await self._dial(link.address)
            except AuthenticationError as error:
                link.error, link.refused = str(error), True
            except (WireError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                link.error = str(error) or type(error).__name__
            else:
                link.connection, link.refused = connection, False
                link.error = await self._serve(link, connection)
                if loop.time() - dialed_at > STEADY_S:
                    backoff.succeeded()
            self._peers.pulse.fire()
            await asyncio.sleep(backoff.failed())

    async def _serve(self, link: _Link, connection: Connection) -> str:
        try:
            return await self._peers.serve(connection)
        finally:
            link.connection = None

    async def _dial(self, address: Address) -> Connection:
        async with asyncio.timeout(HANDSHAKE_S):
            loop = asyncio.get_running_loop()
            _, stream = await loop.create_connection(FrameStream, address.host, address.port)
            try:
                return await greet(
                    stream,
                    us=self._peers.us,
                    keys=self._ring.keys,
                    heartbeat=self._peers.heartbeat,
                )
            except BaseException:
                stream.transport.abort()
                raise


async def _resolve(service: Address) -> set[Address]:
    """The addresses behind a name; none while the name is not there (yet)."""
    try:
        found = await _lookup(service.host, service.port)
    except (OSError, UnicodeError):  # the second: no DNS name, a label is empty or too long
        return set()
    family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else None
    # One family only: a pod's two addresses would be two sessions that replace each other.
    return {
        Address(host=str(entry[4][0]), port=service.port)
        for entry in found
        if family is None or entry[0] == family
    }


async def _lookup(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """As getaddrinfo; a numeric host, as requests name their peers, takes no thread's turn."""
    kind = socket.SOCK_STREAM
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)


def bootstrap_failure(cause: Cause, detail: str, pod: str = "") -> TransferFailed:
    return TransferFailed(cause, stage=Stage.BOOTSTRAP, detail=detail, peer_pod=pod)
