"""The agent: its pieces, and whether it is ready."""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from disagg_transfer.agent.admin import Admin
from disagg_transfer.agent.control import Dialer, Listener
from disagg_transfer.agent.decode import Decode
from disagg_transfer.agent.engine import Engine
from disagg_transfer.agent.engine_socket import EngineSocket
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.http import Http
from disagg_transfer.agent.key_ring import KeyRing
from disagg_transfer.agent.landing import Tools
from disagg_transfer.agent.memory import fabric_of, open_memory
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.outcomes import Changes, Outcomes
from disagg_transfer.agent.peers import Peers
from disagg_transfer.agent.prefill import Prefill
from disagg_transfer.agent.session import fabric_name
from disagg_transfer.agent.storage import Storage
from disagg_transfer.contract import (
    REPORT_VERSION,
    ArenaReport,
    ComponentReport,
    EngineReport,
    NotReady,
    PeerReport,
    PeerState,
    Report,
    Role,
)
from disagg_transfer.lane import Lane
from disagg_transfer.protocol import Identity
from disagg_transfer.settings import Settings

LANE_START_S: Final = 60.0
_RDMA_DEVICES: Final = Path("/sys/class/infiniband")

_log = logging.getLogger(__name__)


class Agent:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._us = Identity(
            namespace=settings.namespace,
            deployment=settings.deployment,
            revision=settings.revision,
            role=settings.role,
            pod=settings.pod,
            incarnation=secrets.token_hex(6),
        )
        memory = open_memory(settings.arena_memory, settings.arena_bytes, local_rank=0)
        self._lane = Lane(
            fabric_name(self._us),
            base=memory.base,
            size=memory.size,
            ucx=settings.ucx,
            passive=settings.role is Role.PREFILL,
            open_fabric=fabric_of(memory),
        )
        self._metrics = Metrics()
        self._changes = Changes()
        self._outcomes = Outcomes(self._metrics, self._changes)
        self._faults = Faults(settings.fault_switch)
        self._memory = memory
        self._storage = Storage(memory, limits=settings.quarantine)
        self._engine: Engine | None = None
        self._refusal = ""  # why the newest engine was not taken; empty once one is
        self._started = False
        self._peers = Peers(
            self._us,
            heartbeat=settings.heartbeat,
            lane=self._lane,
            arena_base=memory.base,
            arena_bytes=memory.size,
            changes=self._changes,
        )
        self._ring = KeyRing(settings.key_file, settings.keys)
        self._listener = Listener(self._peers, ring=self._ring, metrics=self._metrics)
        self._dialer = Dialer(self._peers, ring=self._ring, services=settings.peer_services)
        self._desk = self._make_desk()
        self._peers.desk = self._desk
        self._http = Http(
            report=self.report,
            alive=lambda: self._lane.alive,
            metrics=self._render_metrics,
            changes=self._changes,
            refused=lambda reason: self._metrics.http_refusals.labels(reason).inc(),
        )

    def _make_desk(self) -> Prefill | Decode:
        settings = self._settings
        if settings.role is Role.PREFILL:
            return Prefill(
                pod=settings.pod,
                storage=self._storage,
                outcomes=self._outcomes,
                faults=self._faults,
                timeouts=settings.timeouts,
                integrity=settings.integrity,
                decoders=lambda: any(session.layout for session in self._peers.sessions),
            )
        tools = Tools(
            lane=self._lane,
            storage=self._storage,
            dialer=self._dialer,
            faults=self._faults,
            timeouts=settings.timeouts,
            integrity=settings.integrity,
        )
        return Decode(pod=settings.pod, tools=tools, outcomes=self._outcomes, metrics=self._metrics)

    async def run(self) -> None:
        """Serve until cancelled."""
        metadata = await asyncio.to_thread(self._lane.start, timeout_s=LANE_START_S)
        self._peers.set_metadata(metadata)
        self._started = True
        try:
            async with asyncio.TaskGroup() as group:
                for piece in self._pieces():
                    group.create_task(piece)
        finally:
            self._lane.close(timeout_s=2.0)

    def _pieces(self) -> tuple[Coroutine[Any, Any, None], ...]:
        settings = self._settings

        def refused(reason: str) -> None:
            self._metrics.engine_refusals.labels(reason).inc()

        sockets = EngineSocket(
            role=settings.role,
            state_types=settings.state_types,
            memory=self._memory,
            desk=self._desk,
            registrar=self,
            refused=refused,
        )
        admin = Admin(
            report=self.report,
            ports=lambda: {"control": self._listener.port, "http": self._http.port},
            desk=self._desk,
            faults=self._faults,
            changes=self._changes,
            refused=refused,
        )
        mine: Coroutine[Any, Any, None]
        if isinstance(self._desk, Prefill):
            mine = self._serve_prefill(self._desk)
        else:
            mine = self._dialer.run()
        return (
            self._changes.run(),
            self._http.run(settings.http_port),
            sockets.run(settings.socket),
            admin.run(settings.admin_socket),
            self._watch(),
            self._ring.run(lambda: self._peers.sessions),
            mine,
        )

    async def _serve_prefill(self, desk: Prefill) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listener.run(self._settings.control_port))
            group.create_task(desk.run())

    async def _watch(self) -> None:
        """Readiness may change without a message (DNS, quarantine); readers are woken."""
        before: tuple[object, ...] = ()
        while True:
            reason, _ = self._readiness()
            now = (reason, self._storage.unsettled, self._dialer.reports())
            if now != before:
                before = now
                self._changes.touch()
            await asyncio.sleep(0.25)

    # -- the engine comes and goes

    def engine_registered(self, engine: Engine) -> None:
        self._engine, self._refusal = engine, ""
        _log.info("engine registered: epoch %d, %s", engine.epoch, sorted(engine.parts))
        self._desk.engine_registered(engine)
        self._outcomes.announce(engine.state_types)
        self._peers.engine_registered(engine)

    def engine_lost(self, engine: Engine) -> None:
        self._engine = None
        self._desk.engine_lost()
        self._peers.engine_lost(engine)

    def engine_refused(self, detail: str) -> None:
        self._refusal = detail
        self._changes.touch()

    # -- the report

    def report(self) -> Report:
        reason, message = self._readiness()
        return Report(
            version=REPORT_VERSION,
            cursor=self._changes.cursor,
            incarnation=self._us.incarnation,
            pod=self._us.pod,
            role=self._us.role,
            revision=self._us.revision,
            time=time.time(),
            engine=self._engine_report(),
            ready=reason is None,
            not_ready_reason=reason,
            not_ready_message=message,
            transport=_transport(),
            layout_mismatch=self._peers.mismatches,
            peers=self._peer_reports(),
            state_types=self._outcomes.rows,
            inflight=self._desk.inflight,
            arena=ArenaReport(
                bytes=self._storage.memory.size,
                used=self._storage.used,
                unsettled=self._storage.unsettled,
            ),
            faults=self._faults.described,
            transport_reason="",
            preflight=(),
            strangers_refused=self._metrics.strangers,
        )

    def _engine_report(self) -> EngineReport:
        parts = self._engine.parts if self._engine else {}
        return EngineReport(
            connected=self._engine is not None,
            components=tuple(
                ComponentReport(
                    name=part.name,
                    state_type=part.state_type,
                    item_bytes=part.item_bytes,
                    layers=part.layers,
                    dtype=part.dtype,
                    page_size=part.page_size,
                )
                for _, part in sorted(parts.items())
            ),
        )

    def _peer_reports(self) -> tuple[PeerReport, ...]:
        return self._peers.reports() + self._dialer.reports()

    def _readiness(self) -> tuple[NotReady | None, str | None]:
        """Why not ready, most basic first; a decode agent needs a peer, a prefill agent does not."""
        if not self._started:
            return NotReady.STARTING, "NIXL is starting"
        if not self._lane.alive:
            return NotReady.LANE_FAILED, "the NIXL thread has ended; restart the agent"
        poison = self._storage.poison
        if poison is not None:
            return NotReady.LANE_POISONED, f"lane {self._lane.name}: {poison}"
        if self._engine is None:
            return self._engine_awaited()
        if self._us.role is Role.PREFILL:
            return None, None
        return self._met()

    def _engine_awaited(self) -> tuple[NotReady, str]:
        if self._refusal:
            return NotReady.ENGINE_REFUSED, self._refusal
        return NotReady.ENGINE_NOT_REGISTERED, "no engine has registered on the socket"

    def _met(self) -> tuple[NotReady | None, str | None]:
        mismatches = self._peers.mismatches
        if mismatches:
            first = mismatches[0]
            return NotReady.LAYOUT_MISMATCH, (
                f"{first.field}: prefill pod {first.prefill_pod} has {first.prefill}, "
                f"decode pod {first.decode_pod} has {first.decode}"
            )
        sessions = self._peers.sessions
        if any(session.layout is not None and not session.usable for session in sessions):
            return NotReady.PEERS_NOT_MET, "a prefill agent's metadata is being loaded"
        if any(session.usable for session in sessions):
            return None, None
        waiting = "; ".join(f"{row.pod}: {row.detail}" for row in self._peer_reports())
        return NotReady.NO_PEERS, f"no prefill agent with a registered engine yet ({waiting})"

    def _render_metrics(self) -> bytes:
        report, metrics = self.report(), self._metrics
        for state in PeerState:
            count = sum(peer.state is state for peer in report.peers)
            metrics.peers.labels(state.value).set(count)
        metrics.arena.labels("used").set(report.arena.used)
        metrics.arena.labels("unsettled").set(report.arena.unsettled)
        metrics.arena.labels("total").set(report.arena.bytes)
        metrics.inflight.set(report.inflight)
        metrics.engine.set(report.engine.connected)
        metrics.ready.set(report.ready)
        return metrics.render()


def _transport() -> str:
    """Between pods without an RDMA device NIXL has TCP only; with one, nobody has proved it yet."""
    try:
        return "unknown" if any(_RDMA_DEVICES.iterdir()) else "tcp"
    except OSError:
        return "tcp"
