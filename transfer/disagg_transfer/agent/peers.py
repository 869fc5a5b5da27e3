"""Every session of this agent, whichever side opened it: layouts met, compared and reported."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from disagg_transfer.agent.engine import Desk, Engine
from disagg_transfer.agent.outcomes import Changes
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.session import Session
from disagg_transfer.contract import (
    Cause,
    MismatchReport,
    PeerReport,
    PeerState,
    Role,
    Stage,
)
from disagg_transfer.errors import FabricError, TransferFailed
from disagg_transfer.lane import Lane
from disagg_transfer.layout import compare
from disagg_transfer.limits import Heartbeat
from disagg_transfer.protocol import EngineGone, Identity, Layout

REMEMBER_LOST_S: Final = 30.0  # a peer that went is listed as down for this long

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    identity: Identity
    reason: str
    at: float


class Peers:
    def __init__(
        self,
        us: Identity,
        *,
        heartbeat: Heartbeat,
        lane: Lane,
        arena_base: int,
        arena_bytes: int,
        changes: Changes,
    ) -> None:
        self.heartbeat = heartbeat
        self.us = us
        self.desk: Desk | None = None
        self.pulse = Pulse()
        self._lane = lane
        self._base, self._bytes = arena_base, arena_bytes
        self._metadata = b""
        self._changes = changes
        self._engine: Engine | None = None
        self._sessions: dict[str, Session] = {}  # by pod
        self._lost: dict[str, _Lost] = {}

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    def set_metadata(self, metadata: bytes) -> None:
        self._metadata = metadata

    def engine_registered(self, engine: Engine) -> None:
        self._engine = engine
        for session in self.sessions:
            session.send(self._layout(engine))
            self._compare(session)
        self._notice()

    def engine_lost(self, engine: Engine) -> None:
        self._engine = None
        for session in self.sessions:
            session.send(EngineGone(epoch=engine.epoch))
            session.differences = ()
        self._notice()

    async def serve(self, session: Session) -> str:
        """Run a session to its end, which every request on it learns at once."""
        pod = session.peer.pod
        older = self._sessions.pop(pod, None)
        if older is not None:
            older.close(f"pod {pod} has opened another session")
            await older.ended.wait()
        self._sessions[pod] = session
        self._lost.pop(pod, None)
        if self._engine is not None:
            session.send(self._layout(self._engine))
        self._notice()
        reason = "the session broke"
        try:
            reason = await session.run(self._on_message)
        except asyncio.CancelledError:
            reason = "this agent is shutting down"
            raise
        finally:
            self._forget(session, reason)
        return reason

    def _forget(self, session: Session, reason: str) -> None:
        pod = session.peer.pod
        if self._sessions.get(pod) is session:
            del self._sessions[pod]
            self._lost[pod] = _Lost(identity=session.peer, reason=reason, at=time.monotonic())
        _log.info("peer %s lost: %s", pod, reason)
        if session.fabric_loaded:
            self._lane.remove_peer(session.fabric_name, _ignore)
        if self.desk is not None:
            self.desk.on_session_lost(
                session,
                TransferFailed(
                    Cause.PEER_LOST, stage=Stage.WIRE, detail=reason, peer_pod=session.peer.pod
                ),
            )
        self._notice()

    def _on_message(self, session: Session, message: Any) -> None:
        if isinstance(message, Layout):
            self._met(session, message)
        elif isinstance(message, EngineGone):
            session.vacate()
            if self.desk is not None:
                self.desk.on_peer_engine_lost(session)
            self._notice()
        elif self.desk is not None:
            self.desk.on_message(session, message)

    def _met(self, session: Session, layout: Layout) -> None:
        if layout.fabric_name != session.fabric_name:
            session.close(
                f"its NIXL agent is called {layout.fabric_name!r}, not {session.fabric_name!r}"
            )
            return
        session.layout = layout
        self._compare(session)
        if self.us.role is Role.DECODE and not session.fabric_loaded:
            self._load_fabric(session, layout)
        self._notice()

    def _load_fabric(self, session: Session, layout: Layout) -> None:
        loop = asyncio.get_running_loop()

        def finished(error: FabricError | None) -> None:
            loop.call_soon_threadsafe(self._fabric_loaded, session, error)

        self._lane.add_peer(layout.fabric_name, layout.fabric_metadata, finished)

    def _fabric_loaded(self, session: Session, error: FabricError | None) -> None:
        if error is not None:
            session.close(f"NIXL does not take its metadata: {error}")
        elif session.ended.is_set():
            self._lane.remove_peer(session.fabric_name, _ignore)
        else:
            session.fabric_loaded = True
        self._notice()

    def _compare(self, session: Session) -> None:
        if self._engine is None or session.layout is None:
            session.differences = ()
            return
        ours, theirs = self._engine.fingerprint, session.layout.fingerprint
        if self.us.role is Role.DECODE:
            ours, theirs = theirs, ours
        session.differences = compare(ours, theirs)
        for difference in session.differences:
            _log.warning("layout of %s differs: %s", session.peer.pod, difference)

    def _layout(self, engine: Engine) -> Layout:
        return Layout(
            epoch=engine.epoch,
            fingerprint=engine.fingerprint,
            fabric_name=self._lane.name,
            fabric_metadata=self._metadata,
            arena_base=self._base,
            arena_bytes=self._bytes,
        )

    def _notice(self) -> None:
        self.pulse.fire()
        self._changes.touch()

    @property
    def mismatches(self) -> tuple[MismatchReport, ...]:
        return tuple(
            MismatchReport(
                field=difference.field,
                prefill=difference.prefill,
                decode=difference.decode,
                prefill_pod=prefill,
                decode_pod=decode,
            )
            for session in self.sessions
            for prefill, decode in (self.pods(session.peer.pod),)
            for difference in session.differences
        )

    def pods(self, other: str) -> tuple[str, str]:
        """(prefill pod, decode pod) of a pair with another pod."""
        ours = self.us.pod
        return (ours, other) if self.us.role is Role.PREFILL else (other, ours)

    def reports(self) -> tuple[PeerReport, ...]:
        rows = [_up(session) for session in self.sessions]
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


def _up(session: Session) -> PeerReport:
    if session.layout is None:
        detail = "its engine is not registered"
    else:
        detail = "; ".join(str(difference) for difference in session.differences)
    return PeerReport(
        pod=session.peer.pod,
        incarnation=session.peer.incarnation,
        state=PeerState.UP,
        detail=detail,
    )


def _ignore(_error: FabricError | None) -> None:
    """A peer NIXL has dropped by itself needs no removing."""
