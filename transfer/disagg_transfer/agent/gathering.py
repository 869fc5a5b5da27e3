"""One request of a decode engine, from its bootstrap to its release: a pull from each source.

With equal tensor parallelism there is one source. Where prefill has more ranks, each of several
holds a share, and the request is whole when every share is: the first failure is all of theirs.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from disagg_transfer.accounting import Part
from disagg_transfer.agent.landing import Chunk, Tools
from disagg_transfer.agent.pull import Pull
from disagg_transfer.agent.relay import misuse
from disagg_transfer.agent.session import Session
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Fingerprint, Layout
from disagg_transfer.registry import Resharding, lookup

Sourced = tuple[int, Chunk]  # the prefill rank that a chunk is from, and the chunk
Deliver = Callable[[Sequence[Sourced]], None]
# What an engine releases in time by its own clock is in time here, too: the word has so long.
_ON_ITS_WAY_S: Final = 0.1


class Gathering:
    def __init__(
        self,
        *,
        stream: int,
        room: int,
        peer: str,
        parts: Mapping[str, Part],
        tools: Tools,
        deliver: Deliver,
        failed: Callable[["Gathering", TransferFailed], None],
    ) -> None:
        self.stream = stream  # the engine's name for it
        self.room, self.peer, self.parts = room, peer, parts
        self.pulls: tuple[Pull, ...] = ()
        self.source_ranks = 0  # tensor parallelism of prefill, once it is met
        self.whole = False
        self.release_by = 0.0  # of the loop's clock, once it is whole
        self.failure: TransferFailed | None = None
        self._released = False
        self._tools, self._deliver, self._failed = tools, deliver, failed
        loop = asyncio.get_running_loop()
        self.begun_at = loop.time()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._bootstrapping: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self._released or self.failure is not None

    @property
    def holds_memory(self) -> bool:
        """The engine may still read chunks of it, though it has failed."""
        return any(pull.holds_memory for pull in self.pulls)

    @property
    def stage(self) -> Stage:
        """Of the first source that is not through; how far the request is."""
        if not self.pulls:
            return Stage.BOOTSTRAP
        return next((pull.stage for pull in self.pulls if not pull.whole), Stage.SCATTER)

    @property
    def state(self) -> str:
        if self.failure is not None:
            return f"FAILED({self.failure.cause}, {self.failure.stage})"
        return "ARRIVED" if self.whole else f"PULLING({self.stage})"

    @property
    def peer_pod(self) -> str:
        return self.pulls[0].peer_pod if self.pulls else ""

    @property
    def aux(self) -> bytes:
        """What the first source's engine sent beside its chunks."""
        return self.pulls[0].ledger.aux if self.pulls else b""

    @property
    def first_offer_at(self) -> float | None:
        return min((at for pull in self.pulls if (at := pull.first_offer_at)), default=None)

    @property
    def outstanding(self) -> tuple[Part, ...]:
        """What has not arrived whole, from whichever source."""
        if not self.pulls:
            return tuple(self.parts.values())
        late = {part.component for pull in self.pulls for part in pull.ledger.outstanding}
        return tuple(part for name, part in self.parts.items() if name in late)

    @property
    def nbytes(self) -> Mapping[str, int]:
        """What moves of each component, from all sources together."""
        totals = dict.fromkeys(self.parts, 0)
        for pull in self.pulls:
            for name, part in pull.ledger.parts.items():
                totals[name] += (part.items - part.have) * part.item_bytes
        return totals

    def begin(self) -> None:
        self._bootstrapping = asyncio.create_task(self._bootstrap())

    async def arrive(self) -> None:
        """Return once the request is whole, and delivered as such; else TransferFailed."""
        await self._ended

    async def _bootstrap(self) -> None:
        limit_s = self._tools.timeouts.limit(Stage.BOOTSTRAP)
        try:
            try:
                async with asyncio.timeout(limit_s):
                    sessions = await self._tools.routes.reach(self.peer)
            except TimeoutError:
                raise await self._tools.routes.obstacle(self.peer, within_s=limit_s) from None
            self._begin(sessions)
        except TransferFailed as failure:
            self._bootstrapping = None
            self.fail(failure)

    def _begin(self, sessions: Sequence[Session]) -> None:
        if self.over:
            return
        layouts = [_layout(session) for session in sessions]
        self.source_ranks = layouts[0].fingerprint.ranks
        self.pulls = tuple(
            Pull(
                room=self.room,
                session=session,
                layout=layout,
                parts=shares(self.parts, layout.fingerprint, is_first=session is sessions[0]),
                tools=self._tools,
                begun_at=self.begun_at,
                request=self,
            )
            for session, layout in zip(sessions, layouts, strict=True)
        )
        for pull in self.pulls:
            pull.begin()

    # -- what its pulls say

    def deliver(self, pull: Pull, chunks: Sequence[Chunk]) -> None:
        source = pull.session.theirs
        self._deliver([(source, chunk) for chunk in chunks])

    def completed(self) -> None:
        if not all(pull.whole for pull in self.pulls):
            return
        limit_s = self._tools.timeouts.limit(Stage.SCATTER)
        self.whole = True
        self.release_by = (
            asyncio.get_running_loop().time() + limit_s - min(_ON_ITS_WAY_S, limit_s / 4)
        )
        for pull in self.pulls:
            pull.await_release()
        self._deliver(
            [(pull.session.theirs, chunk) for pull in self.pulls for chunk in pull.take_ready()]
        )
        self._ended.set_result(None)

    def fail(self, failure: TransferFailed) -> None:
        """Every source learns of it but the one whose own word it is."""
        if self.over:
            return
        self.failure = failure
        if self._bootstrapping is not None:
            self._bootstrapping.cancel()
        for pull in self.pulls:
            pull.fail(failure)
        if not self._ended.done():
            self._ended.set_exception(failure)
        self._failed(self, failure)

    # -- what the engine says

    def give_back(self, numbers: Iterable[int]) -> None:
        strange = set(numbers)
        for pull in self.pulls:
            found = pull.held_of(strange)
            strange -= found
            if found:
                pull.give_back(found)
        if strange and not self.over:
            named = ", ".join(map(str, sorted(strange)))
            self.fail(misuse(f"extents {named} are not the engine's to give back"))

    def release(self) -> None:
        """Everything is scattered; nothing if the request has failed since it was whole."""
        if not self.whole:
            self.fail(misuse(f"room {self.room} is released and has not arrived"))
        if self.over:
            return
        self._released = True
        for pull in self.pulls:
            pull.release()

    def close(self) -> None:
        """The engine touches no chunk any more; only of what is over."""
        for pull in self.pulls:
            pull.close()


def shares(
    parts: Mapping[str, Part], fingerprint: Fingerprint, *, is_first: bool
) -> dict[str, Part]:
    """What one source is to send: items of its own size, of what all have whole only the first's."""
    sizes = {part.name: part.item_bytes for part in fingerprint.components}
    found: dict[str, Part] = {}
    for name, part in parts.items():
        replicated = lookup(part.state_type).resharding is Resharding.REPLICATED
        have = part.items if replicated and not is_first else part.have
        found[name] = replace(part, item_bytes=sizes[name], have=have)
    return found


def _layout(session: Session) -> Layout:
    if session.layout is None:
        raise TransferFailed(
            Cause.PEER_LOST,
            stage=Stage.BOOTSTRAP,
            detail="the session ended as the request began",
            peer_pod=session.peer.pod,
        )
    return session.layout
