"""Every connection of this agent, whichever side opened it, and who of the two pods' ranks may
exchange requests: layouts met, compared by rank pair, and reported.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from disagg_transfer.agent.fabric_link import FabricLink
from disagg_transfer.agent.outcomes import Changes
from disagg_transfer.agent.preflight import Preflight
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.samples import Samples
from disagg_transfer.agent.session import Connection, Session, fabric_name
from disagg_transfer.contract import (
    Cause,
    MismatchReport,
    PeerReport,
    PeerState,
    Role,
    Stage,
)
from disagg_transfer.errors import TransferFailed
from disagg_transfer.layout import Difference, compare
from disagg_transfer.limits import CreditLimits, Heartbeat
from disagg_transfer.protocol import DecodePods, EngineGone, Identity, Layout, RankPair
from disagg_transfer.ranks import partners

REMEMBER_LOST_S: Final = 30.0  # a peer that went is listed as down for this long

_Side = TypeVar("_Side")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    identity: Identity
    reason: str
    at: float


class Peers:
    def __init__(
        self, us: Identity, *, heartbeat: Heartbeat, credit: CreditLimits, changes: Changes
    ) -> None:
        self.heartbeat = heartbeat
        self._credit = credit
        self.us = us
        self.pulse = Pulse()
        self.sampling: Samples | Preflight | None = None
        self._changes = changes
        self._ranks: Mapping[int, Rank] = {}
        self._connections: dict[str, Connection] = {}  # by pod
        self._lost: dict[str, _Lost] = {}

    def adopt(self, ranks: Mapping[int, Rank]) -> None:
        """The ranks of this pod, by number; before anything is served."""
        self._ranks = ranks

    @property
    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._connections.values())

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(session for connection in self.connections for session in connection.sessions)

    def engine_registered(self, rank: Rank) -> None:
        for connection in self.connections:
            connection.send(rank.layout)
            self._pair(connection)
        self._notice()

    def engine_lost(self, rank: Rank, *, epoch: int) -> None:
        for connection in self.connections:
            connection.send(EngineGone(rank=rank.number, epoch=epoch))
            for session in connection.sessions:
                if session.ours == rank.number:
                    session.differences = ()
        self._notice()

    async def serve(self, connection: Connection) -> str:
        """Run a connection to its end, which every request on it learns at once."""
        pod = connection.peer.pod
        older = self._connections.pop(pod, None)
        if older is not None:
            older.close(f"pod {pod} has opened another session")
            await older.ended.wait()
        self._connections[pod] = connection
        self._lost.pop(pod, None)
        for rank in self._ranks.values():
            if rank.layout is not None:
                connection.send(rank.layout)
        self._notice()
        reason = "the session broke"
        try:
            reason = await connection.run(self._on_message)
        except asyncio.CancelledError:
            reason = "this agent is shutting down"
            raise
        finally:
            self._forget(connection, reason)
        return reason

    def _forget(self, connection: Connection, reason: str) -> None:
        pod = connection.peer.pod
        if self._connections.get(pod) is connection:
            del self._connections[pod]
            self._lost[pod] = _Lost(identity=connection.peer, reason=reason, at=time.monotonic())
        _log.info("peer %s lost: %s", pod, reason)
        failure = TransferFailed(Cause.PEER_LOST, stage=Stage.WIRE, detail=reason, peer_pod=pod)
        for session in connection.sessions:
            rank = self._ranks[session.ours]
            if session.fabric is not None:
                session.fabric.close()
            if self.sampling is not None:
                self.sampling.on_session_lost(session)
            rank.desk.on_session_lost(session, failure)
        self._notice()

    def _on_message(self, connection: Connection, pair: RankPair, message: Any) -> None:
        match message:
            case Layout():
                self._met(connection, message)
            case EngineGone(rank=rank) if rank in connection.peer.held:
                connection.vacate(rank)
                for session in connection.sessions:
                    if session.theirs == rank:
                        self._ranks[session.ours].desk.on_peer_engine_lost(session)
                self._notice()
            case DecodePods() if isinstance(self.sampling, Preflight):
                self.sampling.told(connection.peer.pod, message)
            case _:
                addressed = self.session(connection, pair)
                if addressed is None:
                    connection.close(f"{type(message).__name__} is for {pair}, which is not here")
                else:
                    self._deliver(addressed, message)

    def _deliver(self, session: Session, message: Any) -> None:
        if self.sampling is not None and isinstance(message, self.sampling.messages):
            self.sampling.on_message(session, message)
        else:
            self._ranks[session.ours].desk.on_message(session, message)

    def _met(self, connection: Connection, layout: Layout) -> None:
        expected = fabric_name(connection.peer, layout.rank)
        anew = layout.fabric_name.removeprefix(f"{expected}/").isdecimal()  # its generation
        named = anew or layout.fabric_name == expected
        if layout.rank not in connection.peer.held or not named:
            connection.close(
                f"its rank {layout.rank} has a NIXL agent called {layout.fabric_name!r}; its "
                f"handshake says ranks {list(connection.peer.held)} and {expected!r}"
            )
            return
        connection.layouts[layout.rank] = layout
        self._pair(connection)
        self._notice()

    def _pair(self, connection: Connection) -> None:
        """Give every session of the two pods' ranks that need each other the layout it is of."""
        for rank in self._ranks.values():
            for layout in connection.layouts.values():
                self._introduce(connection, rank, layout)

    def _introduce(self, connection: Connection, rank: Rank, layout: Layout) -> None:
        if rank.engine is None:
            return
        prefill, decode = self._sided(rank.engine.fingerprint, layout.fingerprint)
        pair = self.pair(ours=rank.number, theirs=layout.rank)
        session = connection.session(pair)
        if pair.prefill not in partners(
            pair.decode, decode_ranks=decode.ranks, prefill_ranks=prefill.ranks
        ):
            session.vacate()
            return
        before, session.layout = session.differences, layout
        session.differences = compare(prefill, decode)
        if session.differences != before:
            for difference in session.differences:
                _log.warning("layout of %s differs: %s", connection.peer.pod, difference)
        if self.us.role is Role.DECODE:
            self._load_fabric(rank, session, layout)

    def _load_fabric(self, rank: Rank, session: Session, layout: Layout) -> None:
        """Another name is another arena: the peer's lane has been made anew."""
        if session.fabric is not None and session.fabric.name == layout.fabric_name:
            return
        if session.fabric is not None:
            session.fabric.close()
        session.fabric = FabricLink(
            layout, lane=rank.lane, limits=self._credit, changed=self._notice
        )

    def session(self, connection: Connection, pair: RankPair) -> Session | None:
        """None where one of the ranks is not of its pod."""
        theirs, ours = self._sided(pair.decode, pair.prefill)
        known = ours in self._ranks and theirs in connection.peer.held
        return connection.session(pair) if known else None

    @property
    def served(self) -> bool:
        """Decode: whether some prefill group has everything that each engine here needs."""
        engines = [rank for rank in self._ranks.values() if rank.engine is not None]
        return any(
            all(self._usable(connection, rank) for rank in engines)
            for connection in self.connections
            if connection.layouts
        )

    def _usable(self, connection: Connection, rank: Rank) -> bool:
        for theirs in self.wanted(rank, connection):
            holder = self.holder(connection, theirs)
            if not holder or not holder.session(self.pair(ours=rank.number, theirs=theirs)).usable:
                return False
        return True

    def wanted(self, rank: Rank, connection: Connection) -> frozenset[int]:
        """The prefill ranks that a decode rank of ours needs of a group; by its own number alone
        while the engine of either side is not known.
        """
        layout = next(iter(connection.layouts.values()), None)
        if rank.engine is None or layout is None:
            return frozenset((rank.number,))
        return partners(
            rank.number,
            decode_ranks=rank.engine.fingerprint.ranks,
            prefill_ranks=layout.fingerprint.ranks,
        )

    def holder(self, connection: Connection, rank: int) -> Connection | None:
        """Of a rank of the group that a connection's pod is of: that pod, or another one's."""
        group = connection.peer.group
        others = (other for other in self.connections if other.peer.group == group)
        return next((c for c in (connection, *others) if rank in c.peer.held), None)

    def pair(self, *, ours: int, theirs: int) -> RankPair:
        prefill, decode = self._sided(ours, theirs)
        return RankPair(prefill=prefill, decode=decode)

    def _sided(self, ours: _Side, theirs: _Side) -> tuple[_Side, _Side]:
        """(prefill's, decode's)."""
        return (ours, theirs) if self.us.role is Role.PREFILL else (theirs, ours)

    def _notice(self) -> None:
        self.pulse.fire()
        self._changes.touch()

    def detach(self, rank: Rank) -> None:
        """Its lane is to be made anew: no session reads with the one it has."""
        for session in self.sessions:
            if session.ours == rank.number and session.fabric is not None:
                session.fabric.close()
                session.fabric = None
            if session.ours == rank.number and self.sampling is not None:
                self.sampling.on_session_lost(session)
        self._notice()

    @property
    def reads_waiting(self) -> int:
        """For a peer's credit."""
        links = (session.fabric for session in self.sessions)
        return sum(link.credits.waiting for link in links if link is not None)

    @property
    def mismatches(self) -> tuple[MismatchReport, ...]:
        """Each once, however many rank pairs of the two pods have it."""
        found = {
            (connection.peer.pod, difference): None
            for connection in self.connections
            for session in connection.sessions
            for difference in session.differences
        }
        return tuple(self._mismatch(pod, difference) for pod, difference in found)

    def _mismatch(self, pod: str, difference: Difference) -> MismatchReport:
        prefill_pod, decode_pod = self._sided(self.us.pod, pod)
        return MismatchReport(
            field=difference.named,
            prefill=difference.prefill,
            decode=difference.decode,
            prefill_pod=prefill_pod,
            decode_pod=decode_pod,
        )

    def reports(self) -> tuple[PeerReport, ...]:
        rows = [_up(connection) for connection in self.connections]
        horizon = time.monotonic() - REMEMBER_LOST_S
        self._lost = {pod: lost for pod, lost in self._lost.items() if lost.at > horizon}
        for pod, lost in self._lost.items():
            rows.append(
                PeerReport(
                    pod=pod,
                    incarnation=lost.identity.incarnation,
                    state=PeerState.DOWN,
                    detail=lost.reason,
                )
            )
        return tuple(sorted(rows, key=lambda row: row.pod))


def _up(connection: Connection) -> PeerReport:
    differences = {
        str(difference): None
        for session in connection.sessions
        for difference in session.differences
    }
    return PeerReport(
        pod=connection.peer.pod,
        incarnation=connection.peer.incarnation,
        state=PeerState.UP,
        detail=_vacancy(connection) or "; ".join(differences) or "; ".join(_broken(connection)),
    )


def _broken(connection: Connection) -> list[str]:
    """Of the links that cannot be read over."""
    links = (session.fabric for session in connection.sessions)
    return [link.detail for link in links if link is not None and link.detail]


def _vacancy(connection: Connection) -> str:
    """Whose engines the peer still waits for."""
    if not connection.layouts:
        return "its engine is not registered"
    ranks = max(layout.fingerprint.ranks for layout in connection.layouts.values())
    absent = [
        str(rank)
        for rank in connection.peer.held
        if rank < ranks and rank not in connection.layouts
    ]
    return f"no engine of rank {', '.join(absent)} is registered" if absent else ""
