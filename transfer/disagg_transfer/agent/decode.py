"""Decode's desk: pulls under way, and rooms whose bytes the engine is taking out."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_transfer.accounting import Part
from disagg_transfer.agent.engine import Engine, Sight
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.outcomes import Outcomes, Pods
from disagg_transfer.agent.pull import Pull, Tools
from disagg_transfer.agent.refusals import Refusals
from disagg_transfer.agent.relay import heard, misuse, refused, restaged
from disagg_transfer.agent.session import Session
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.engine_messages import (
    Abort,
    Answer,
    Arrived,
    ArrivedPayload,
    Call,
    Done,
    Refuse,
    ReleaseRoom,
)
from disagg_transfer.engine_messages import Pull as PullCall
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Confirmed, Failed, Offer, Release


@dataclass(slots=True)
class _Room:
    pull: Pull
    begun_at: float
    arrived: bool = False
    scatter_clock: asyncio.TimerHandle | None = None
    failure: TransferFailed | None = None  # after arrival: the engine learns it on release


class Decode:
    def __init__(self, *, pod: str, tools: Tools, outcomes: Outcomes, metrics: Metrics) -> None:
        self._pod, self._tools = pod, tools
        self._outcomes, self._metrics = outcomes, metrics
        self._engine: Engine | None = None
        self._rooms: dict[int, _Room] = {}
        self._refusals = Refusals(tools.dialer, timeouts=tools.timeouts)

    @property
    def inflight(self) -> int:
        return len(self._rooms)

    @property
    def sights(self) -> tuple[Sight, ...]:
        now = asyncio.get_running_loop().time()
        return tuple(
            Sight(
                room=number,
                state="ARRIVED" if room.arrived else f"PULLING({room.pull.stage})",
                peer_pod=room.pull.peer_pod,
                age_s=now - room.begun_at,
                components=", ".join(
                    f"{part.component} missing" for part in room.pull.ledger.outstanding
                ),
            )
            for number, room in self._rooms.items()
        )

    def engine_registered(self, engine: Engine) -> None:
        self._engine = engine

    def engine_lost(self) -> None:
        self._engine = None
        detail = f"the engine of decode pod {self._pod} is not connected to its agent"
        for number, room in list(self._rooms.items()):
            stage = Stage.SCATTER if room.arrived else room.pull.stage
            failure = TransferFailed(Cause.ENGINE_LOST, stage=stage, detail=detail)
            if room.arrived:
                self._end(number, failure)
            else:
                room.pull.post(failure)

    def engine_unmapped(self, engine: Engine) -> None:
        """A decode engine only reads the arena."""

    async def answer(self, call: Call) -> Answer:
        match call:
            case PullCall():
                return await self._pull(call)
            case ReleaseRoom():
                self._release(call.room)
            case Abort():
                self._abort(call)
            case Refuse():
                self._refuse(call)
            case _:
                raise misuse(f"{type(call).__name__} is a prefill engine's call")
        return Done(call=call.call)

    async def _pull(self, call: PullCall) -> Arrived:
        if call.room in self._rooms:
            raise misuse(f"room {call.room} is in flight; every request needs a room of its own")
        try:
            parts = self._parts(call.expect)
        except TransferFailed as failure:
            self._refusals.tell(call.room, peer=call.peer, failure=failure)
            raise
        pull = Pull(
            room=call.room,
            request=secrets.token_bytes(16),
            peer=call.peer,
            parts=parts,
            tools=self._tools,
        )
        room = _Room(pull, asyncio.get_running_loop().time())
        self._rooms[call.room] = room
        try:
            await pull.run()
        except TransferFailed as failure:
            self._record(pull, failure)
            if pull.session is None:  # it never claimed the room, so it could tell nobody
                self._refusals.tell(call.room, peer=call.peer, failure=failure)
            raise
        finally:
            if not pull.arrived:
                del self._rooms[call.room]
        self._arrived(room)
        return _answer(call, pull)

    def _parts(self, expect: Mapping[str, int]) -> dict[str, Part]:
        assert self._engine is not None
        known = self._engine.parts
        if expect.keys() != known.keys():
            raise misuse(
                f"expect names {', '.join(sorted(expect)) or 'nothing'}; it must name every "
                f"registered component, with 0 items where a request has none: "
                f"{', '.join(sorted(known))}"
            )
        return {
            name: Part(
                component=name,
                state_type=known[name].state_type,
                item_bytes=known[name].item_bytes,
                items=items,
            )
            for name, items in expect.items()
        }

    def _arrived(self, room: _Room) -> None:
        loop = asyncio.get_running_loop()
        limit_s = self._tools.timeouts.limit(Stage.SCATTER)
        room.arrived = True
        room.scatter_clock = loop.call_later(limit_s, self._scatter_late, room, limit_s)
        for part in room.pull.ledger.parts.values():
            self._outcomes.succeeded(
                part.state_type,
                nbytes=part.nbytes,
                pods=Pods(prefill=room.pull.peer_pod, decode=self._pod),
            )
        if room.pull.first_offer_at is not None:
            self._metrics.seconds.observe(loop.time() - room.pull.first_offer_at)

    def _scatter_late(self, room: _Room, limit_s: float) -> None:
        """Too late; but the engine may still read, so the bytes stay until it says otherwise."""
        room.failure = TransferFailed(
            Cause.TIMEOUT,
            stage=Stage.SCATTER,
            detail="the engine did not take the request out of the arena and release it "
            f"within {limit_s:g} s",
            peer_pod=room.pull.peer_pod,
        )
        room.pull.tell(room.failure)
        self._record(room.pull, room.failure)

    def _release(self, number: int) -> None:
        room = self._rooms.get(number)
        if room is None or not room.arrived:
            raise misuse(f"room {number} has not arrived, or has ended")
        if room.failure is not None:
            self._end(number, None)
            raise room.failure
        if room.pull.session is not None:
            room.pull.session.send(Release(room=number, request=room.pull.request))
        self._end(number, None)

    def _refuse(self, call: Refuse) -> None:
        if call.room not in self._rooms:  # else it was another request of the same number
            self._refusals.tell(call.room, peer=call.peer, failure=refused(call.detail))

    def _abort(self, call: Abort) -> None:
        room = self._rooms.get(call.room)
        if room is None:
            return
        stage = Stage.SCATTER if room.arrived else room.pull.stage
        failure = TransferFailed(
            Cause.ABORTED, stage=stage, detail=call.detail, peer_pod=room.pull.peer_pod
        )
        if room.arrived:
            self._end(call.room, None if room.failure else failure)
        else:
            room.pull.post(failure)

    def _end(self, number: int, failure: TransferFailed | None) -> None:
        """An arrived room ends: nobody reads its bytes any more."""
        room = self._rooms.pop(number)
        if room.scatter_clock is not None:
            room.scatter_clock.cancel()
        for span in room.pull.spans.values():
            self._tools.storage.free(span)
        if failure is not None:
            room.pull.tell(failure)
            self._record(room.pull, failure)

    def _record(self, pull: Pull, failure: TransferFailed) -> None:
        """What arrived whole made it, unless all of it did: then nobody could use it."""
        late = pull.ledger.outstanding or tuple(pull.ledger.parts.values())
        prefill_pod = pull.peer_pod or failure.peer_pod or pull.peer
        self._outcomes.failed(
            failure,
            room=pull.room,
            state_types={part.state_type for part in late},
            pods=Pods(prefill=prefill_pod, decode=self._pod),
        )

    # -- prefill agents

    def on_message(self, session: Session, message: Any) -> None:
        if not isinstance(message, Offer | Confirmed | Failed):
            session.close(f"{type(message).__name__} is decode's to send")
            return
        room = self._rooms.get(message.room)
        if room is None or room.arrived or room.pull.session is not session:
            return
        if message.request != room.pull.request:
            return
        if isinstance(message, Failed):
            room.pull.post(heard(message, pod=session.peer.pod))
        else:
            room.pull.post(message)

    def on_session_lost(self, session: Session, failure: TransferFailed) -> None:
        for pull in self._pulls_on(session):
            pull.post(restaged(failure, pull.stage))

    def on_peer_engine_lost(self, session: Session) -> None:
        for pull in self._pulls_on(session):
            pull.post(
                TransferFailed(
                    Cause.ENGINE_LOST,
                    stage=pull.stage,
                    detail=f"the engine of prefill pod {session.peer.pod} is gone",
                    peer_pod=session.peer.pod,
                )
            )

    def _pulls_on(self, session: Session) -> tuple[Pull, ...]:
        return tuple(
            room.pull
            for room in self._rooms.values()
            if room.pull.session is session and not room.arrived
        )


def _answer(call: PullCall, pull: Pull) -> Arrived:
    return Arrived(
        call=call.call,
        payloads=tuple(
            ArrivedPayload(
                component=name,
                items=pull.ledger.parts[name].items,
                offset=span.offset,
                nbytes=span.nbytes,
            )
            for name, span in pull.spans.items()
        ),
        aux=pull.ledger.aux,
        prefill_pod=pull.peer_pod,
    )
