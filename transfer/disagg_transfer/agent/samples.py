"""Prefill's half of preflight: known bytes in memory that no request needs now, for decode to pull.

Decode is told which other decode pods there are, too, so that all of them choose the same pairs.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from disagg_transfer.agent.session import Connection, Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.canary import pattern
from disagg_transfer.contract import PreflightReport
from disagg_transfer.protocol import (
    DecodePods,
    SampleDone,
    SampleReady,
    SampleRefused,
    SampleWanted,
)

HOLD_S: Final = 90.0  # decode gives up before; memory is not held for one that says nothing
MAX_HELD: Final = 4  # at a time, each for another session
TELL_EVERY_S: Final = 1.0
MAX_PODS: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """From the moment it is asked for: that it is done may be the very next word."""

    number: int
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Samples:
    messages: Final = (SampleWanted, SampleDone)

    rows: Final[tuple[PreflightReport, ...]] = ()  # decode measures
    verdict: Final = None

    def __init__(
        self,
        storage: Callable[[int], Storage],  # of a rank
        *,
        connections: Callable[[], Iterable[Connection]],
    ) -> None:
        self._storage, self._connections = storage, connections
        self._held: dict[Session, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of those that are done and let go, too

    async def run(self) -> None:
        """Tell every decode pod which others there are; again within a second of a change."""
        told: dict[Connection, tuple[str, ...]] = {}
        while True:
            connections = tuple(self._connections())
            pods = tuple(sorted(connection.peer.pod for connection in connections))[:MAX_PODS]
            for connection in connections:
                if told.get(connection) != pods:
                    connection.send(DecodePods(pods=pods))
            told = dict.fromkeys(connections, pods)
            await asyncio.sleep(TELL_EVERY_S)

    def on_message(self, session: Session, message: Any) -> None:
        match message:
            case SampleWanted():
                self._wanted(session, message)
            case SampleDone(number=number):
                held = self._held.get(session)
                if held is not None and held.number == number:
                    self._let_go(session)

    def on_session_lost(self, session: Session) -> None:
        self._let_go(session)

    def _let_go(self, session: Session) -> None:
        held = self._held.pop(session, None)
        if held is not None:
            held.done.set()

    def _wanted(self, session: Session, wanted: SampleWanted) -> None:
        if session in self._held or len(self._tasks) >= MAX_HELD:
            detail = f"{len(self._tasks)} samples are held already"
            session.send(SampleRefused(number=wanted.number, detail=detail))
            return
        held = self._held[session] = _Held(wanted.number)
        task = asyncio.create_task(self._hold(session, wanted, held.done))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(session, held, task))

    def _ended(self, session: Session, held: _Held, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._held.get(session) is held:
            del self._held[session]

    async def _hold(self, session: Session, wanted: SampleWanted, done: asyncio.Event) -> None:
        storage = self._storage(session.ours)
        span = storage.spare(wanted.nbytes)
        if span is None:
            detail = f"no {wanted.nbytes} bytes of the arena are idle"
            session.send(SampleRefused(number=wanted.number, detail=detail))
            return
        try:
            data = await asyncio.to_thread(pattern, wanted.seed, wanted.nbytes)
            storage.write(span, data)
            session.send(SampleReady(number=wanted.number, offset=span.offset))
            async with asyncio.timeout(HOLD_S):
                await done.wait()
        except TimeoutError:
            pass
        finally:
            storage.free(span)
