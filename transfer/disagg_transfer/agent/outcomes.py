"""What became of requests, by state type and pair of pods, and the cursor that moves with it."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.contract import (
    MAX_PAIRS,
    Cause,
    FailureReport,
    PairReport,
    StateTypeReport,
)
from disagg_transfer.errors import TransferFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The two ends of a transfer."""

    prefill: str
    decode: str


@dataclass(slots=True)
class _Row:
    transfers: int = 0
    bytes: int = 0
    timeouts: int = 0
    failures: int = 0
    pairs: dict[Pods, PairReport] = field(default_factory=dict)  # newest last

    def note(
        self, pods: Pods, *, success: float | None = None, failure: FailureReport | None = None
    ) -> None:
        known = self.pairs.pop(pods, None)
        self.pairs[pods] = PairReport(
            prefill_pod=pods.prefill,
            decode_pod=pods.decode,
            last_success=success or (known.last_success if known else None),
            last_failure=failure or (known.last_failure if known else None),
        )
        if len(self.pairs) > MAX_PAIRS:
            del self.pairs[next(iter(self.pairs))]


class Outcomes:
    def __init__(
        self,
        metrics: Metrics,
        changes: "Changes",
        *,
        rows: dict[str, _Row] | None = None,
        label: str = "",
    ) -> None:
        self._metrics = metrics
        self._changes = changes
        self._rows: dict[str, _Row] = {} if rows is None else rows
        self._label = label  # before every failure's detail

    def of_rank(self, number: int) -> "Outcomes":
        """The same rows, as one engine rank of several adds to them."""
        label = f"rank {number}: "
        return Outcomes(self._metrics, self._changes, rows=self._rows, label=label)

    def announce(self, state_types: Iterable[str]) -> None:
        names = sorted(set(state_types))
        for name in names:
            self._rows.setdefault(name, _Row())
        self._metrics.announce(names)
        self._changes.touch()

    def succeeded(self, state_type: str, *, nbytes: int, pods: Pods) -> None:
        row = self._rows.setdefault(state_type, _Row())
        row.transfers += 1
        row.bytes += nbytes
        row.note(pods, success=time.time())
        self._metrics.transfers.labels(state_type).inc()
        self._metrics.bytes.labels(state_type).inc(nbytes)
        self._changes.touch()

    def failed(
        self,
        failure: TransferFailed,
        *,
        room: int,
        state_types: Iterable[str],
        pods: Pods,
    ) -> None:
        """One failure, in the rows of the state types that did not make it."""
        told = FailureReport(
            time=time.time(),
            stage=failure.stage,
            cause=failure.cause,
            component=failure.component,
            detail=self._label + failure.detail,
            room=room,
        )
        for name in sorted({failure.state_type} if failure.state_type else set(state_types)):
            row = self._rows.setdefault(name, _Row())
            row.note(pods, failure=told)
            self._count(name, row, failure)
        self._changes.touch()

    def _count(self, state_type: str, row: _Row, failure: TransferFailed) -> None:
        row.failures += 1
        self._metrics.failures.labels(state_type, failure.cause.value).inc()
        if failure.cause is Cause.TIMEOUT:
            row.timeouts += 1
            self._metrics.timeouts.labels(state_type, failure.stage.value).inc()

    def moved_at(self, pods: Pods) -> float:
        """When the pair last moved something, as time.time() says; 0.0 if it never did."""
        pairs = (row.pairs.get(pods) for row in self._rows.values())
        return max((pair.last_success or 0.0 for pair in pairs if pair), default=0.0)

    @property
    def rows(self) -> tuple[StateTypeReport, ...]:
        return tuple(
            StateTypeReport(
                type=name,
                transfers=row.transfers,
                bytes=row.bytes,
                timeouts=row.timeouts,
                failures=row.failures,
                pairs=tuple(
                    sorted(row.pairs.values(), key=lambda pair: (pair.prefill_pod, pair.decode_pod))
                ),
            )
            for name, row in sorted(self._rows.items())
        )


COALESCE_S: Final = 0.1  # a reader is woken at most this often


class Changes:
    """The report's cursor. It starts at the clock, so one from before a restart never matches."""

    def __init__(self) -> None:
        self.cursor = int(time.time() * 1000)
        self.pulse = Pulse()
        self._dirty = Pulse()
        self._pending = False

    def touch(self) -> None:
        self._pending = True
        self._dirty.fire()

    async def run(self) -> None:
        while True:
            while not self._pending:
                await self._dirty.wait()
            self._pending = False
            self.cursor += 1
            self.pulse.fire()
            await asyncio.sleep(COALESCE_S)
