"""What became of requests: a row per state type, and the cursor that moves when one changes."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.contract import Cause, FailureReport, StateTypeReport
from disagg_transfer.errors import TransferFailed


@dataclass(slots=True)
class _Row:
    transfers: int = 0
    bytes: int = 0
    timeouts: int = 0
    failures: int = 0
    last_success: float | None = None
    last_failure: FailureReport | None = None


class Outcomes:
    def __init__(self, metrics: Metrics, changes: "Changes") -> None:
        self._metrics = metrics
        self._changes = changes
        self._rows: dict[str, _Row] = {}

    def announce(self, state_types: Iterable[str]) -> None:
        names = sorted(set(state_types))
        for name in names:
            self._rows.setdefault(name, _Row())
        self._metrics.announce(names)
        self._changes.touch()

    def succeeded(self, state_type: str, nbytes: int) -> None:
        row = self._rows.setdefault(state_type, _Row())
        row.transfers += 1
        row.bytes += nbytes
        row.last_success = time.time()
        self._metrics.transfers.labels(state_type).inc()
        self._metrics.bytes.labels(state_type).inc(nbytes)
        self._changes.touch()

    def failed(
        self,
        failure: TransferFailed,
        *,
        room: int,
        state_types: Iterable[str],
        prefill_pod: str,
        decode_pod: str,
    ) -> None:
        """One failure, in the rows of the state types that did not make it."""
        told = FailureReport(
            time=time.time(),
            stage=failure.stage,
            cause=failure.cause,
            component=failure.component,
            prefill_pod=prefill_pod,
            decode_pod=decode_pod,
            detail=failure.detail,
            room=room,
        )
        for name in sorted({failure.state_type} if failure.state_type else set(state_types)):
            self._count(name, failure)
            self._rows[name].last_failure = told
        self._changes.touch()

    def _count(self, state_type: str, failure: TransferFailed) -> None:
        row = self._rows.setdefault(state_type, _Row())
        row.failures += 1
        self._metrics.failures.labels(state_type, failure.cause.value).inc()
        if failure.cause is Cause.TIMEOUT:
            row.timeouts += 1
            self._metrics.timeouts.labels(state_type, failure.stage.value).inc()

    @property
    def rows(self) -> tuple[StateTypeReport, ...]:
        return tuple(
            StateTypeReport(
                type=name,
                transfers=row.transfers,
                bytes=row.bytes,
                timeouts=row.timeouts,
                failures=row.failures,
                last_success=row.last_success,
                last_failure=row.last_failure,
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
