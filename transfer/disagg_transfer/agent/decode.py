"""Decode's desk: streams under way, and rooms whose chunks the engine is taking out."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from disagg_transfer.accounting import Part
from disagg_transfer.agent.engine import Engine, Send, Sight
from disagg_transfer.agent.gathering import Gathering, Sourced
from disagg_transfer.agent.landing import Chunk, Tools
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.outcomes import Outcomes, Pods
from disagg_transfer.agent.pull import Pull
from disagg_transfer.agent.refusals import Refusals
from disagg_transfer.agent.relay import misuse, refused, restaged
from disagg_transfer.agent.session import Session
from disagg_transfer.contract import Cause
from disagg_transfer.engine_messages import (
    Abort,
    Answer,
    Arrived,
    ArrivedChunk,
    Call,
    CloseStream,
    Done,
    GiveBack,
    OfferPayload,
    Refuse,
    ReleaseStream,
    Stream,
    Word,
)
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Confirmed, Failed, Offer

_log = logging.getLogger(__name__)


class Decode:
    def __init__(self, *, pod: str, tools: Tools, outcomes: Outcomes, metrics: Metrics) -> None:
        self._pod, self._tools = pod, tools
        self._outcomes, self._metrics = outcomes, metrics
        self._engine: Engine | None = None
        self._rooms: dict[int, Gathering] = {}
        self._streams: dict[int, Gathering] = {}  # the same, by the engine's call
        self._refusals = Refusals(tools.routes, timeouts=tools.timeouts)

    @property
    def inflight(self) -> int:
        return len(self._rooms)

    @property
    def sights(self) -> tuple[Sight, ...]:
        now = asyncio.get_running_loop().time()
        return tuple(
            Sight(
                room=room,
                state=pull.state,
                peer_pod=pull.peer_pod,
                age_s=now - pull.begun_at,
                components=", ".join(f"{part.component} missing" for part in pull.outstanding),
            )
            for room, pull in self._rooms.items()
        )

    def engine_registered(self, engine: Engine) -> None:
        self._engine = engine

    def engine_lost(self) -> None:
        self._engine = None
        detail = f"the engine of decode pod {self._pod} is not connected to its agent"
        for pull in list(self._rooms.values()):
            pull.fail(TransferFailed(Cause.ENGINE_LOST, stage=pull.stage, detail=detail))
            self._forget(pull)

    def engine_unmapped(self, engine: Engine) -> None:
        """A decode engine only reads the arena."""

    def answer_now(self, call: Call) -> Answer | None:
        match call:
            case Stream():
                return None
            case Abort():
                self._abort(call)
            case Refuse():
                self._refuse(call)
            case _:
                raise misuse(f"{type(call).__name__} is a prefill engine's call")
        return Done(call=call.call)

    def answer(self, call: Call, send: Send) -> Coroutine[Any, Any, None]:
        assert isinstance(call, Stream)
        return self._finish(self._begin(call, send))

    def take(self, word: Word) -> None:
        pull = None if isinstance(word, OfferPayload) else self._streams.get(word.stream)
        match word:
            case GiveBack() if pull:
                pull.give_back(word.extents)
            case CloseStream() if pull:
                self._give_up(pull, word.detail, stopped=True)
            case ReleaseStream() if pull:
                self._release(pull)
            case _:
                _log.warning("%s of no stream under way is ignored", type(word).__name__)

    def _begin(self, call: Stream, send: Send) -> Gathering:
        if call.room in self._rooms:
            raise misuse(f"room {call.room} is in flight; every request needs a room of its own")
        try:
            parts = self._parts(call)
        except TransferFailed as failure:
            self._refusals.tell(call.room, peer=call.peer, failure=failure)
            raise
        pull = Gathering(
            stream=call.call,
            room=call.room,
            peer=call.peer,
            parts=parts,
            tools=self._tools,
            deliver=lambda chunks: send(_arrived(call.call, pull, chunks)),
            failed=self._failed,
        )
        self._rooms[call.room] = self._streams[call.call] = pull
        pull.begin()
        return pull

    async def _finish(self, pull: Gathering) -> None:
        await pull.arrive()
        self._succeeded(pull)

    def _parts(self, call: Stream) -> dict[str, Part]:
        assert self._engine is not None
        known = self._engine.parts
        if call.expect.keys() != known.keys():
            raise misuse(
                f"expect names {', '.join(sorted(call.expect)) or 'nothing'}; it must name every "
                f"registered component, with 0 items where a request has none: "
                f"{', '.join(sorted(known))}"
            )
        _check_have(call.have, call.expect)
        return {
            name: Part(
                component=name,
                state_type=known[name].state_type,
                item_bytes=known[name].item_bytes,
                items=items,
                have=call.have.get(name, 0),
            )
            for name, items in call.expect.items()
        }

    def _succeeded(self, pull: Gathering) -> None:
        pods = Pods(prefill=pull.peer_pod, decode=self._pod)
        for name, nbytes in pull.nbytes.items():
            self._outcomes.succeeded(pull.parts[name].state_type, nbytes=nbytes, pods=pods)
        if pull.first_offer_at is not None:
            elapsed = asyncio.get_running_loop().time() - pull.first_offer_at
            self._metrics.seconds.observe(elapsed)

    def _failed(self, pull: Gathering, failure: TransferFailed) -> None:
        """Of a failed request only what the engine may still read is kept, until it says so."""
        self._record(pull, failure)
        if not pull.pulls:  # it never claimed the room, so it could tell nobody
            self._refusals.tell(pull.room, peer=pull.peer, failure=failure)
        if not pull.whole and not pull.holds_memory:
            self._forget(pull)

    def _forget(self, pull: Gathering) -> None:
        """The engine touches no chunk of it any more."""
        pull.close()
        if self._rooms.get(pull.room) is pull:
            del self._rooms[pull.room]
            del self._streams[pull.stream]

    def _release(self, pull: Gathering) -> None:
        pull.release()
        self._forget(pull)

    def _refuse(self, call: Refuse) -> None:
        if call.room not in self._rooms:  # else it was another request of the same number
            self._refusals.tell(call.room, peer=call.peer, failure=refused(call.detail))

    def _abort(self, call: Abort) -> None:
        pull = self._rooms.get(call.room)
        if pull is not None:
            self._give_up(pull, call.detail, stopped=call.stopped)

    def _give_up(self, pull: Gathering, detail: str, *, stopped: bool) -> None:
        pull.fail(
            TransferFailed(Cause.ABORTED, stage=pull.stage, detail=detail, peer_pod=pull.peer_pod)
        )
        if stopped:
            self._forget(pull)

    def _record(self, pull: Gathering, failure: TransferFailed) -> None:
        """What arrived whole made it, unless all of it did: then nobody could use it."""
        late = pull.outstanding or tuple(pull.parts.values())
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
        gathering = self._rooms.get(message.room)
        for pull in gathering.pulls if gathering else ():
            if _moves_on(pull, session) and message.request == pull.request:
                pull.on_message(message)

    def on_session_lost(self, session: Session, failure: TransferFailed) -> None:
        for pull in self._pulls_on(session):
            pull.fail(restaged(failure, pull.stage))

    def on_peer_engine_lost(self, session: Session) -> None:
        for pull in self._pulls_on(session):
            pull.fail(
                TransferFailed(
                    Cause.ENGINE_LOST,
                    stage=pull.stage,
                    detail=f"the engine of prefill pod {session.peer.pod} is gone",
                    peer_pod=session.peer.pod,
                )
            )

    def _pulls_on(self, session: Session) -> tuple[Pull, ...]:
        return tuple(
            pull
            for gathering in self._rooms.values()
            for pull in gathering.pulls
            if _moves_on(pull, session)
        )


def _moves_on(pull: Pull, session: Session) -> bool:
    """Once it is whole it needs its peer no more."""
    return pull.session is session and not pull.whole


def _check_have(have: Mapping[str, int], expect: Mapping[str, int]) -> None:
    for name, items in have.items():
        if not items <= expect.get(name, -1):
            raise misuse(
                f"have[{name}] is {items}; it must be of a registered component, and at most the "
                f"items that are expected: {expect.get(name, 'it is not registered')}"
            )


def _arrived(call: int, gathering: Gathering, chunks: Iterable[Sourced]) -> Arrived:
    return Arrived(
        call=call,
        chunks=tuple(_arrived_chunk(source, chunk) for source, chunk in chunks),
        ended=gathering.whole,
        release_by=int(gathering.release_by * 1000),
        aux=gathering.aux if gathering.whole else b"",
        prefill_pod=gathering.peer_pod,
        prefill_ranks=gathering.source_ranks,
    )


def _arrived_chunk(source: int, chunk: Chunk) -> ArrivedChunk:
    offer, span = chunk.offer, chunk.span
    assert span is not None
    return ArrivedChunk(
        component=offer.component,
        source=source,
        first=offer.first,
        items=offer.items,
        skip=max(chunk.part.have - offer.first, 0),
        extent=span.number,
        offset=span.offset,
        nbytes=span.nbytes,
    )
