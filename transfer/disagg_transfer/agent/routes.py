"""The sessions that one decode rank's requests take, found by the peer that a request names.

A router names one pod of a prefill group, its leader. The rank that holds what this one needs may
be in another pod of that group, which its handshake has said.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from disagg_transfer.agent.control import RESOLVE_S, Dialer, bootstrap_failure
from disagg_transfer.agent.fabric_link import FabricLink
from disagg_transfer.agent.peers import Peers
from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.relay import told_differences
from disagg_transfer.agent.session import Connection, Session
from disagg_transfer.contract import Cause
from disagg_transfer.errors import TransferFailed

ENGINE_GRACE_S: Final = 1.0  # a new connection hears of the peer's engine within this


class Routes:
    def __init__(self, rank: Rank, *, dialer: Dialer, peers: Peers) -> None:
        self._rank, self._dialer, self._peers = rank, dialer, peers

    async def reach(self, peer: str) -> tuple[Session, ...]:
        """One to each source, by rank, that may carry requests; waits for all without limit.

        Not for an engine that is not there: its copy of the request is lost, so nobody would
        ever begin the room.
        """
        return await self._find(peer, self._usable)

    async def meet(self, peer: str) -> tuple[Session, ...]:
        """The same whatever engines are behind them; waits for one or more without limit."""
        return await self._find(peer, lambda connection: tuple(self._sessions(connection)))

    async def obstacle(self, peer: str, *, within_s: float) -> TransferFailed:
        """Why `reach` has not returned within that time."""
        connection = next(iter(await self._dialer.connections(peer)), None)
        if connection is None:
            return await self._dialer.obstacle(peer, within_s=within_s)
        pod = connection.peer.pod
        absent = self._peers.wanted(self._rank, connection) - {
            s.theirs for s in self._sessions(connection)
        }
        if absent:
            detail = f"no pod that has rank {min(absent)} of the group of prefill pod {pod} is"
            detail = f"{detail} connected within {within_s:g} s"
            return bootstrap_failure(Cause.PEER_UNREACHABLE, detail, pod)
        for session in self._sessions(connection):
            if session.fabric is not None and session.fabric.reason:
                return _unread(session.fabric, session)
        what = "NIXL has not taken its metadata" if connection.layouts else "no engine registered"
        detail = f"{peer} is up, but {what} within {within_s:g} s"
        return bootstrap_failure(Cause.TIMEOUT, detail, pod)

    async def _find(
        self, peer: str, pick: Callable[[Connection], tuple[Session, ...]]
    ) -> tuple[Session, ...]:
        while True:
            for connection in await self._dialer.connections(peer):
                sessions = pick(connection)
                if sessions:
                    return sessions
            try:
                async with asyncio.timeout(RESOLVE_S):
                    await self._peers.pulse.wait()
            except TimeoutError:
                continue

    def _usable(self, connection: Connection) -> tuple[Session, ...]:
        if not connection.layouts:
            _refuse_vacant(connection, connection.peer.held[0])
            return ()
        sessions = tuple(self._sessions(connection))
        for session in sessions:
            if session.differences:
                raise told_differences(session)
            if session.theirs not in session.connection.layouts:
                _refuse_vacant(session.connection, session.theirs)
            if session.fabric is not None and session.fabric.broken:
                raise _unread(session.fabric, session)
        complete = len(sessions) == len(self._peers.wanted(self._rank, connection))
        return sessions if complete and all(s.usable for s in sessions) else ()

    def _sessions(self, connection: Connection) -> Iterator[Session]:
        """To every prefill rank that this one needs, as far as their pods are connected."""
        for rank in sorted(self._peers.wanted(self._rank, connection)):
            holder = self._peers.holder(connection, rank)
            if holder is not None:
                yield holder.session(self._peers.pair(ours=self._rank.number, theirs=rank))


def _unread(link: FabricLink, session: Session) -> TransferFailed:
    return bootstrap_failure(Cause.TRANSPORT_ERROR, link.detail, session.peer.pod)


def _refuse_vacant(connection: Connection, rank: int) -> None:
    if connection.vacant_for(rank) > ENGINE_GRACE_S:
        pod = connection.peer.pod
        which = f" as rank {rank}" if len(connection.peer.held) > 1 else ""
        detail = f"no engine is registered{which} with the agent of prefill pod {pod}"
        raise bootstrap_failure(Cause.ENGINE_LOST, detail, pod)
