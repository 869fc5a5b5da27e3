"""The agent: its pieces, and whether it is ready."""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from random import Random
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
from disagg_transfer.agent.metrics import Metrics, Moment
from disagg_transfer.agent.outcomes import Changes, Outcomes
from disagg_transfer.agent.peers import Peers
from disagg_transfer.agent.prefill import Prefill
from disagg_transfer.agent.preflight import Preflight, Surroundings
from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.renewal import Renewal
from disagg_transfer.agent.routes import Routes
from disagg_transfer.agent.samples import Samples
from disagg_transfer.agent.transports import Transports
from disagg_transfer.contract import (
    REPORT_VERSION,
    ArenaReport,
    ComponentReport,
    EngineReport,
    NotReady,
    PeerReport,
    Report,
    Role,
)
from disagg_transfer.protocol import Identity
from disagg_transfer.registry import entries
from disagg_transfer.settings import Settings
from disagg_transfer.verdict import transport_of

LANE_START_S: Final = 60.0

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
            group=settings.group,
            node=settings.node,
            ranks=settings.ranks,
        )
        self._metrics = Metrics(settings.state_types or entries())
        self._changes = Changes()
        self._outcomes = Outcomes(self._metrics, self._changes)
        self._faults = Faults(settings.fault_switch)
        self._peers = Peers(
            self._us,
            heartbeat=settings.heartbeat,
            credit=settings.credits,
            changes=self._changes,
        )
        self._ring = KeyRing(settings.key_file, settings.keys)
        self._listener = Listener(self._peers, ring=self._ring, metrics=self._metrics)
        self._dialer = Dialer(self._peers, ring=self._ring, services=settings.peer_services)
        self._ranks = {
            number: Rank(number, us=self._us, settings=settings) for number in self._us.held
        }
        self._transports = Transports(
            settings.ucx, arena_bytes=settings.arena_bytes * len(self._ranks)
        )
        for rank in self._ranks.values():
            rank.desk = self._make_desk(rank)
        self._peers.adopt(self._ranks)
        self._sampling = self._make_sampling()
        self._peers.sampling = self._sampling
        self._sweeps: dict[int, asyncio.Task[None]] = {}
        self._renewal = Renewal(
            self._ranks.values(), remake_s=settings.quarantine.remake_s, surroundings=self
        )
        self._refusals: dict[int, str] = {}  # why the newest engine of a rank was not taken
        self._started = False
        self._http = Http(
            report=self.report,
            alive=lambda: self._alive,
            metrics=self._render_metrics,
            changes=self._changes,
            refused=lambda reason: self._metrics.http_refusals.labels(reason).inc(),
            keys=lambda: self._ring.keys,
        )

    def _make_desk(self, rank: Rank) -> Prefill | Decode:
        settings, several = self._settings, len(self._ranks) > 1 or self._us.node > 0
        outcomes = self._outcomes.of_rank(rank.number) if several else self._outcomes
        if settings.role is Role.PREFILL:
            return Prefill(
                pod=settings.pod,
                storage=rank.storage,
                outcomes=outcomes,
                faults=self._faults,
                timeouts=settings.timeouts,
                integrity=settings.integrity,
                limits=settings.credits,
                decoders=lambda: sum(bool(peer.layouts) for peer in self._peers.connections),
            )
        tools = Tools(
            lane=rank.lane,
            storage=rank.storage,
            routes=Routes(rank, dialer=self._dialer, peers=self._peers),
            faults=self._faults,
            timeouts=settings.timeouts,
            integrity=settings.integrity,
        )
        return Decode(pod=settings.pod, tools=tools, outcomes=outcomes, metrics=self._metrics)

    @property
    def _alive(self) -> bool:
        """What only a restart mends makes the kubelet restart the container."""
        alive = all(rank.lane.alive for rank in self._ranks.values())
        return alive and not self._renewal.hopeless

    def _make_sampling(self) -> Samples | Preflight:
        if self._us.role is Role.PREFILL:
            return Samples(
                lambda number: self._ranks[number].storage,
                connections=lambda: self._peers.connections,
            )
        around = Surroundings(
            pod=self._us.pod,
            connections=lambda: self._peers.connections,
            ranks=self._ranks,
            transports=self._transports,
            outcomes=self._outcomes,
            changes=self._changes,
            pulse=self._peers.pulse,
            count=lambda result: self._metrics.samples.labels(result).inc(),
        )
        return Preflight(self._settings.preflight, around=around, random=Random())  # noqa: S311  (spreads canaries)

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._transports.opened():
            for rank in self._ranks.values():
                await asyncio.to_thread(rank.start, timeout_s=LANE_START_S)
        self._started = True
        try:
            async with asyncio.TaskGroup() as group:
                for piece in self._pieces():
                    group.create_task(piece)
        finally:
            for rank in self._ranks.values():
                rank.lane.close(timeout_s=2.0)

    def _pieces(self) -> tuple[Coroutine[Any, Any, None], ...]:
        settings = self._settings

        def refused(reason: str) -> None:
            self._metrics.engine_refusals.labels(reason).inc()

        self._sockets = EngineSocket(
            role=settings.role,
            state_types=settings.state_types,
            ranks=self._ranks,
            registrar=self,
            refused=refused,
        )
        admin = Admin(
            report=self.report,
            ports=lambda: {"control": self._listener.port, "http": self._http.port},
            desks=lambda: {number: rank.desk for number, rank in self._ranks.items()},
            faults=self._faults,
            changes=self._changes,
            refused=refused,
            sampling=self._sampling,
        )
        mine = self._serve_prefill() if settings.role is Role.PREFILL else self._dialer.run()
        return (
            self._changes.run(),
            self._http.run(settings.http_port),
            self._sockets.run(settings.socket),
            admin.run(settings.admin_socket),
            self._watch(),
            self._ring.run(lambda: self._peers.connections),
            self._transports.run(),
            self._sampling.run(),
            self._renewal.run(),
            mine,
        )

    async def _serve_prefill(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._listener.run(self._settings.control_port))
            for rank in self._ranks.values():
                self._sweep(rank)

    def _sweep(self, rank: Rank) -> None:
        """Prefill's desk expires what nobody comes for, as long as it is the rank's."""
        if isinstance(rank.desk, Prefill):
            self._sweeps[rank.number] = self._group.create_task(rank.desk.run())

    async def _watch(self) -> None:
        """Readiness may change without a message (DNS, quarantine); readers are woken."""
        before: tuple[object, ...] = ()
        while True:
            reason, _ = self._readiness()
            unsettled = sum(rank.storage.unsettled for rank in self._ranks.values())
            now = (reason, unsettled, self._dialer.reports())
            if now != before:
                before = now
                self._changes.touch()
            await asyncio.sleep(0.25)

    # -- a lane is made anew

    def opened(self) -> AbstractContextManager[None]:
        return self._transports.opened()

    async def evict(self, rank: Rank) -> None:
        await self._sockets.evict(rank)

    def detach(self, rank: Rank) -> None:
        self._peers.detach(rank)
        if rank.number in self._sweeps:
            self._sweeps.pop(rank.number).cancel()

    def attach(self, rank: Rank) -> None:
        rank.desk = self._make_desk(rank)
        self._sweep(rank)

    # -- the engine comes and goes

    def engine_registered(self, rank: Rank, engine: Engine) -> None:
        rank.engine = engine
        self._refusals.pop(rank.number, None)
        _log.info(
            "engine of rank %d registered: epoch %d, %s",
            rank.number,
            engine.epoch,
            sorted(engine.parts),
        )
        if not self._awaited:
            self._refusals.clear()
        rank.desk.engine_registered(engine)
        self._outcomes.announce(engine.state_types)
        self._peers.engine_registered(rank)

    def engine_lost(self, rank: Rank) -> None:
        engine, rank.engine = rank.engine, None
        assert engine is not None
        rank.desk.engine_lost()
        self._peers.engine_lost(rank, epoch=engine.epoch)

    def engine_refused(self, number: int, detail: str) -> None:
        self._refusals[number] = detail
        self._changes.touch()

    # -- the report

    def report(self) -> Report:
        reason, message = self._readiness()
        rows = self._sampling.rows
        transport, transport_reason = transport_of(rows, self._settings.preflight.policy)
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
            transport=transport,
            layout_mismatch=self._peers.mismatches,
            peers=self._peer_reports(),
            state_types=self._outcomes.rows,
            inflight=sum(rank.desk.inflight for rank in self._ranks.values()),
            arena=self._arena_report(),
            faults=self._faults.described,
            transport_reason=transport_reason,
            preflight=rows,
            strangers_refused=self._metrics.strangers,
        )

    def _arena_report(self) -> ArenaReport:
        arenas = [rank.storage for rank in self._ranks.values()]
        return ArenaReport(
            bytes=sum(arena.memory.size for arena in arenas),
            used=sum(arena.used for arena in arenas),
            unsettled=sum(arena.unsettled for arena in arenas),
        )

    def _engine_report(self) -> EngineReport:
        """The components of one rank: those of its siblings are the same but for their share."""
        engine = next((rank.engine for rank in self._ranks.values() if rank.engine), None)
        parts = engine.parts if engine else {}
        return EngineReport(
            connected=not self._awaited,
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
        if not self._alive:
            return NotReady.LANE_FAILED, "the NIXL thread has ended; restart the agent"
        for rank in self._ranks.values():
            poison = rank.storage.poison
            if poison is not None:
                return NotReady.LANE_POISONED, f"lane {rank.lane.name}: {poison}"
        if self._awaited:
            return self._engine_awaited()
        if self._us.role is Role.PREFILL:
            return None, None
        return self._met()

    @property
    def _awaited(self) -> tuple[int, ...]:
        """Ranks of this pod without an engine; those past the engines' own count are not used."""
        there = [rank.engine for rank in self._ranks.values() if rank.engine]
        if not there:
            return tuple(self._ranks)
        ranks = there[0].fingerprint.ranks
        return tuple(n for n, rank in self._ranks.items() if n < ranks and rank.engine is None)

    def _engine_awaited(self) -> tuple[NotReady, str]:
        awaited = self._awaited
        told = [self._refusals[number] for number in sorted(self._refusals)]
        if told:
            return NotReady.ENGINE_REFUSED, told[0]
        if len(awaited) == len(self._ranks):
            return NotReady.ENGINE_NOT_REGISTERED, "no engine has registered on the socket"
        numbers = ", ".join(map(str, awaited))
        return NotReady.ENGINE_NOT_REGISTERED, f"no engine of rank {numbers} has registered"

    def _met(self) -> tuple[NotReady | None, str | None]:
        mismatches = self._peers.mismatches
        if mismatches:
            first = mismatches[0]
            return NotReady.LAYOUT_MISMATCH, (
                f"{first.field}: prefill pod {first.prefill_pod} has {first.prefill}, "
                f"decode pod {first.decode_pod} has {first.decode}"
            )
        sessions = self._peers.sessions
        if any(session.meeting for session in sessions):
            return NotReady.PEERS_NOT_MET, "a prefill agent's metadata is being loaded"
        if self._peers.served:
            return self._sampling.verdict or (None, None)
        waiting = "; ".join(f"{row.pod}: {row.detail}" for row in self._peer_reports())
        return NotReady.NO_PEERS, f"no prefill agent that can be read from ({waiting})"

    def _render_metrics(self) -> bytes:
        storages = [rank.storage for rank in self._ranks.values()]
        silences = (connection.silent_s for connection in self._peers.connections)
        now = Moment(
            poisoned_lanes=sum(storage.poison is not None for storage in storages),
            longest_silence_s=max(silences, default=0.0),
            reads_waiting=self._peers.reads_waiting,
            late_settled=sum(storage.late_settled for storage in storages),
        )
        return self._metrics.render(self.report(), now)
