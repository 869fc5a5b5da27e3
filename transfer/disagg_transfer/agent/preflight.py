"""Decode's half of preflight: samples pulled from every peer before requests come, and again while
a pair moves nothing, so that "Ready" stays true.

A pair is pending until its first sample ended, then passed or failed by the newest one. Samples
take only memory and time that no request needs: where an arena is busy, requests are moving.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from disagg_transfer.agent.outcomes import Changes, Outcomes, Pods
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.sampling import ArenaBusyError, Sampled, Sampling
from disagg_transfer.agent.session import Connection, Session
from disagg_transfer.agent.transports import Transports
from disagg_transfer.canary import (
    PreflightSettings,
    next_canary,
    next_retry,
    sample_sizes,
    spanning_pairs,
)
from disagg_transfer.contract import (
    Cause,
    PreflightMode,
    PreflightReport,
    PreflightState,
    Stage,
    Transport,
)
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import DecodePods, SampleReady, SampleRefused
from disagg_transfer.verdict import Verdict, is_good, merged, verdict

MAX_RUNNING: Final = 4  # samples at a time; more would measure each other
_LOOK_EVERY_S: Final = 1.0
_BUSY_AGAIN_S: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pair:
    """One peer and what came of its samples; another engine registration is another pair."""

    session: Session
    epoch: int
    due: float
    state: PreflightState = PreflightState.PENDING
    sampled: Sampled | None = None
    transport: Transport = Transport.UNKNOWN
    transport_reason: str = ""
    detail: str = "no sample has been pulled yet"
    cause: Cause | None = None
    failures: int = 0  # in a row
    at: float | None = None
    passed_at: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: "asyncio.Task[None] | None" = None

    @property
    def pod(self) -> str:
        return self.session.peer.pod

    @property
    def learns(self) -> bool:
        """Whether the next sample is to find out the transport; it stays what it is after that."""
        return self.transport is Transport.UNKNOWN

    @property
    def _where(self) -> str:
        """Which rank of several; the pods' first ranks are the only ones as a rule."""
        ranks = self.session.pair
        several = ranks.prefill or ranks.decode
        return f"prefill rank {ranks.prefill} to decode rank {ranks.decode}: " if several else ""

    @property
    def report(self) -> PreflightReport:
        return PreflightReport(
            pod=self.pod,
            state=self.state,
            gbps=round(self.sampled.gbps, 3) if self.sampled else None,
            latency_ms=round(self.sampled.latency_s * 1e3, 3) if self.sampled else None,
            transport=self.transport,
            transport_reason=self.transport_reason,
            detail=self._where + self.detail,
            cause=self.cause,
            at=self.at,
            passed_at=self.passed_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What preflight takes from the rest of the agent."""

    pod: str
    connections: Callable[[], Iterable[Connection]]
    ranks: Mapping[int, Rank]  # of this pod
    transports: Transports
    outcomes: Outcomes
    changes: Changes
    pulse: Pulse  # fires when a session comes, goes or changes
    count: Callable[[str], None]  # of ended samples, by result


class Preflight:
    messages: Final = (SampleReady, SampleRefused)

    def __init__(
        self, settings: PreflightSettings, *, around: Surroundings, random: Random
    ) -> None:
        self.settings = settings
        self._around, self._random = around, random
        self._pairs: dict[Session, Pair] = {}
        self._decodes: dict[str, tuple[str, ...]] = {}  # as each prefill pod tells them
        self._samplings: dict[int, Sampling] = {}  # under way, by number
        self._numbers = itertools.count(1)
        self._cleared = False
        self._learning = asyncio.Lock()  # what UCX prints is of whoever reads for the first time
        self._told: tuple[object, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those that are sampled of themselves."""
        return _ordered(self._pairs.values())

    @property
    def rows(self) -> tuple[PreflightReport, ...]:
        """One for each pod, the worst of its ranks' pairs."""
        return _by_pod(self.pairs)

    @property
    def verdict(self) -> Verdict | None:
        """Why the agent is not ready, as far as preflight goes."""
        return verdict(self.rows, self.settings, cleared=self._cleared)

    async def run(self) -> None:
        """Until cancelled; where preflight is off, only `probe` samples."""
        if self.settings.mode is PreflightMode.OFF:
            return
        try:
            while True:
                self._follow()
                self._start_due()
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._around.pulse.wait()
                except TimeoutError:
                    continue
        finally:
            for pair in self.pairs:
                _stop(pair)

    async def probe(self, pod: str | None) -> tuple[PreflightReport, ...]:
        """Sample one peer, or every one, now; those that are not sampled of themselves, too."""
        found = [s for s in self._usable() if pod in (None, s.peer.pod)]
        pairs = _ordered(self._pairs.get(session) or self._pair(session) for session in found)
        for pair in pairs:
            await self._sample(pair)
        return _by_pod(pairs)

    def on_message(self, session: Session, message: Any) -> None:
        sampling = self._samplings.get(message.number)
        if sampling is not None and sampling.session is session:
            sampling.answered(message)

    def told(self, prefill_pod: str, message: DecodePods) -> None:
        self._decodes[prefill_pod] = message.pods
        self._around.pulse.fire()

    def on_session_lost(self, session: Session) -> None:
        self._forget(session)

    # -- which pairs

    def _usable(self) -> tuple[Session, ...]:
        connections = self._around.connections()
        sessions = (session for connection in connections for session in connection.sessions)
        return tuple(session for session in sessions if session.usable)

    def _follow(self) -> None:
        """Pairs come and go with sessions and engines, and where there are many, by the set."""
        pods = self._chosen_pods()
        chosen = {session: None for session in self._usable() if session.peer.pod in pods}
        for session, pair in list(self._pairs.items()):
            layout = session.layout
            if session not in chosen or layout is None or layout.epoch != pair.epoch:
                self._forget(session)
        for session in chosen.keys() - self._pairs.keys():
            self._pairs[session] = self._pair(session)
            self._note()

    def _chosen_pods(self) -> frozenset[str]:
        prefills = {connection.peer.pod for connection in self._around.connections()}
        self._decodes = {pod: told for pod, told in self._decodes.items() if pod in prefills}
        us = self._around.pod
        decodes = {us}.union(*self._decodes.values())
        return frozenset(p for p, d in spanning_pairs(prefills, decodes) if d == us)

    def _pair(self, session: Session) -> Pair:
        layout = session.layout
        assert layout is not None
        return Pair(session=session, epoch=layout.epoch, due=asyncio.get_running_loop().time())

    def _forget(self, session: Session) -> None:
        pair = self._pairs.pop(session, None)
        if pair is not None:
            _stop(pair)
            self._note()

    # -- when, and what becomes of it

    def _start_due(self) -> None:
        now = asyncio.get_running_loop().time()
        running = sum(pair.task is not None and not pair.task.done() for pair in self.pairs)
        for pair in sorted(self.pairs, key=lambda pair: pair.due):
            if running >= MAX_RUNNING or pair.due > now:
                return
            if pair.task is not None and not pair.task.done():
                continue
            idle_s = time.time() - self._moved_at(pair)
            if pair.state is PreflightState.PASSED and idle_s < self.settings.every_s:
                pair.due = now + self.settings.every_s - idle_s
                continue
            pair.task = asyncio.create_task(self._sample(pair))
            running += 1

    def _moved_at(self, pair: Pair) -> float:
        return self._around.outcomes.moved_at(Pods(prefill=pair.pod, decode=self._around.pod))

    async def _sample(self, pair: Pair) -> None:
        """Pull one and note what came of it; whoever else wants one of this pair waits."""
        limit_s = self.settings.warm_s if pair.passed_at else self.settings.cold_s
        async with pair.lock, self._learning if pair.learns else contextlib.nullcontext():
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(limit_s):
                    await self._pull(pair)
            except TimeoutError:
                self._failed(pair, Cause.TIMEOUT, f"no whole sample within {limit_s:g} s")
            except TransferFailed as failure:
                self._failed(pair, failure.cause, failure.detail)
            except ArenaBusyError as busy:
                self._around.count("skipped")
                pair.detail, pair.due = f"skipped: {busy}", loop.time() + _BUSY_AGAIN_S
            self._note()

    def _note(self) -> None:
        good = [is_good(row, self.settings) for row in self.rows]
        self._cleared = bool(good) and (self._cleared or all(good))
        told = tuple((row.pod, row.state, row.cause, row.transport_reason) for row in self.rows)
        if told != self._told:  # else every canary would wake whoever reads the report
            self._told = told
            self._around.changes.touch()

    async def _pull(self, pair: Pair) -> None:
        around, layout = self._around, pair.session.layout
        rank = around.ranks[pair.session.ours]
        if layout is None:
            raise TransferFailed(Cause.ENGINE_LOST, stage=Stage.BOOTSTRAP, detail="its engine left")
        sizes = sample_sizes(
            {part.name: part.item_bytes for part in layout.fingerprint.components},
            arena_bytes=min(layout.arena_bytes, rank.storage.memory.size),
        )
        number = next(self._numbers)
        sampling = Sampling(pair.session, number=number, lane=rank.lane, storage=rank.storage)
        self._samplings[number] = sampling
        try:
            if pair.learns:
                around.transports.before_read()
            sampled = await sampling.run(sizes)
        finally:
            del self._samplings[number]
        self._passed(pair, sampled, components=len(sizes))

    def _passed(self, pair: Pair, sampled: Sampled, *, components: int) -> None:
        before = pair.state
        pair.state, pair.cause, pair.failures = PreflightState.PASSED, None, 0
        pair.sampled = sampled
        if pair.learns:
            told = self._around.transports.after_read(sampled.cost)
            pair.transport, pair.transport_reason = told
        pair.detail = (
            f"{sampled.nbytes} bytes of {components} components, digests right; "
            f"first read {sampled.first_s * 1e3:.1f} ms"
        )
        pair.at = pair.passed_at = time.time()
        now = asyncio.get_running_loop().time()
        pair.due = next_canary(now, every_s=self.settings.every_s, random=self._random)
        self._around.count("passed")
        if before is not PreflightState.PASSED:
            _log.info("preflight of %s passed: %s", pair.pod, pair.report)

    def _failed(self, pair: Pair, cause: Cause, detail: str) -> None:
        pair.state, pair.cause, pair.detail = PreflightState.FAILED, cause, detail
        pair.failures += 1
        pair.at = time.time()
        now = asyncio.get_running_loop().time()
        pair.due = next_retry(now, failures=pair.failures, random=self._random)
        self._around.count("failed")
        _log.warning("preflight of %s failed: %s: %s", pair.pod, cause, detail)


def _ordered(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair.pod, pair.session.pair)))


def _by_pod(pairs: Iterable[Pair]) -> tuple[PreflightReport, ...]:
    groups = itertools.groupby(pairs, key=lambda pair: pair.pod)
    return tuple(merged([pair.report for pair in group]) for _, group in groups)


def _stop(pair: Pair) -> None:
    if pair.task is not None:
        pair.task.cancel()
