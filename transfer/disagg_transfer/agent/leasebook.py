"""Every lease of a prefill agent, the claims that came early, and how each of them ends."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from disagg_transfer.agent.engine import Engine
from disagg_transfer.agent.lease import Claim, Held, Lease
from disagg_transfer.agent.outcomes import Outcomes, Pods
from disagg_transfer.agent.relay import misuse, restaged, tell
from disagg_transfer.agent.session import Session
from disagg_transfer.agent.storage import Storage
from disagg_transfer.agent.tombstones import Tombstones
from disagg_transfer.arena import Span
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import TransferFailed

REMEMBER_S: Final = 60.0  # how long an engine may be late to learn how a room ended
MAX_CLAIMS: Final = 4096  # rooms wanted and not begun
MAX_LEASES: Final = 16384  # rooms begun and not ended, or whose end the engine has not learned
SWEEP_S: Final = 0.25
_CLAIMED_STAGES: Final = (
    Stage.NOTIFY,
    Stage.ALLOCATE,
    Stage.POST,
    Stage.WIRE,
    Stage.SCATTER,
)
_GRACE_S: Final = 5.0  # decode, which owns these deadlines, tells first
# Decode gets its copy of a request with prefill's, and its agent has met this one long before.
_ALONE_S: Final = 5.0


class LeaseBook:
    def __init__(
        self,
        *,
        pod: str,
        storage: Storage,
        outcomes: Outcomes,
        timeouts: Timeouts,
        decoders: Callable[[], int],  # decode engines behind sessions
    ) -> None:
        self._pod, self._storage, self._decoders = pod, storage, decoders
        self._outcomes, self._timeouts = outcomes, timeouts
        self.engine: Engine | None = None
        self._leases: dict[int, Lease] = {}
        self._claims: dict[int, list[Claim]] = {}  # for rooms not begun
        # No longer than the other copy of the request may be under way.
        self._keep_s = timeouts.limit(Stage.BOOTSTRAP) + timeouts.limit(Stage.QUEUE)
        self._given_up = Tombstones(keep_s=self._keep_s)
        self._orphans: dict[int, list[Span]] = {}  # by the epoch of the engine that may write there

    @property
    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def find(self, room: int) -> Lease | None:
        return self._leases.get(room)

    def get(self, room: int) -> Lease:
        lease = self._leases.get(room)
        if lease is None:
            raise misuse(f"room {room} has not begun, or has ended")
        return lease

    async def run(self) -> None:
        """Expire what nobody comes for."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep(self._now())

    # -- beginnings

    def begin(self, room: int) -> None:
        if room in self._leases:
            raise misuse(f"room {room} is in flight; every request needs a room of its own")
        failure = self._given_up.take(room)
        if failure is not None:
            raise failure
        if len(self._leases) >= MAX_LEASES:
            raise misuse(f"{MAX_LEASES} rooms have begun; wait for the release of some, or abort")
        now = self._now()
        self._leases[room] = Lease(room, now, now, claims=self._claims.pop(room, []))

    def claim(self, room: int, claim: Claim) -> Lease | None:
        """Take a claim in, which may come before the room begins; raises when it cannot be had."""
        failure = self._given_up.take(room, takers=claim.readers)
        if failure is not None:
            raise failure
        lease = self._leases.get(room)
        claims = lease.claims if lease else self._claims.get(room, [])
        shared = len(claims) < claim.readers and all(claim.shares_with(other) for other in claims)
        if not shared or (lease is not None and lease.ended):
            pod = claims[0].session.peer.pod if claims else "nobody"
            raise misuse(f"room {room} is claimed already, by {pod}")
        if lease is not None:
            lease.moved_at = self._now()
        elif not claims and len(self._claims) >= MAX_CLAIMS:
            raise misuse(f"{MAX_CLAIMS} rooms are wanted and not begun")
        else:
            self._claims[room] = claims
        claims.append(claim)
        return lease

    # -- ends

    def fail(
        self, lease: Lease, failure: TransferFailed, *, told_by: Session | None = None
    ) -> None:
        """End it for every reader; whoever told of it need not hear it again."""
        if lease.ended:
            return
        lease.failure = failure
        self.free(lease.held)
        if not lease.claimed:
            self._given_up.put(lease.room, failure, now=self._now(), told=len(lease.claims))
        _tell(lease.room, lease.claims, failure, told_by=told_by)
        pod = lease.decode_pod or failure.peer_pod
        self._record(lease.room, failure, pod, pulled=lease.pulled)
        lease.changed.fire()

    def fail_claim(
        self, room: int, failure: TransferFailed, *, session: Session, request: bytes
    ) -> None:
        """Decode gives up: the lease, or the claim that came before one."""
        lease = self._leases.get(room)
        claims = lease.claims if lease else self._claims.get(room, [])
        if not any(claim.session is session and claim.request == request for claim in claims):
            return
        if lease is not None:
            self.fail(lease, failure, told_by=session)
        else:
            self._drop_claims(room, failure, told_by=session)

    def give_up(self, room: int, failure: TransferFailed, *, peer: Session | None = None) -> None:
        """A side refuses its copy of a request: `peer`, or with None this pod's engine.

        The other side learns it now or, coming later, then. A refusal changes nothing where the
        refuser's side has taken the room up: it was of another request with the same number, or
        of a decode pod that is not the one the room is for.
        """
        lease = self._leases.get(room)
        claims = lease.claims if lease else self._claims.get(room, [])
        taken_up = lease is not None if peer is None else not _awaits(claims, peer)
        if taken_up:
            return
        if lease is not None:
            self.fail(lease, failure, told_by=peer)
        elif claims:
            self._drop_claims(room, failure, told_by=peer)
        else:
            self._given_up.put(room, failure, now=self._now())

    def _drop_claims(
        self, room: int, failure: TransferFailed, *, told_by: Session | None = None
    ) -> None:
        """A room that was wanted and never begun; whoever is late on it learns why."""
        claims = self._claims.pop(room)
        if told_by is not None or len(claims) < claims[0].readers:
            told = len(claims) if told_by is None else 0  # else the engine, too, is to hear it
            self._given_up.put(room, failure, now=self._now(), told=told)
        _tell(room, claims, failure, told_by=told_by)
        self._record(room, failure, claims[0].session.peer.pod)

    def free(self, chunks: Iterable[Held]) -> None:
        """Decode has them, or never will."""
        for held in chunks:
            if held.span is not None:
                self._storage.free(held.span)
                held.span = None

    def close(self, lease: Lease) -> None:
        """The engine has learned how the room ended, and writes no more of it."""
        for span in lease.written.values():
            self._storage.free(span)
        lease.written.clear()
        if self._leases.get(lease.room) is lease:
            del self._leases[lease.room]

    def _abandon(self, lease: Lease) -> None:
        """Its engine never came to learn the end; what it writes, it may write still."""
        if lease.written:
            assert self.engine is not None
            self._orphan(lease, self.engine, writer="an engine that never said it had stopped")
        del self._leases[lease.room]

    def _orphan(self, lease: Lease, engine: Engine, *, writer: str) -> None:
        for span in lease.written.values():
            self._storage.quarantine(span, writer=writer)
        self._orphans.setdefault(engine.epoch, []).extend(lease.written.values())

    def lose_session(self, session: Session, failure: TransferFailed) -> None:
        for lease in self.leases:
            if any(claim.session is session for claim in lease.claims):
                self.fail(lease, restaged(failure, lease.stage), told_by=session)
        for room, claims in list(self._claims.items()):
            if any(claim.session is session for claim in claims):
                del self._claims[room]
                _tell(room, claims, restaged(failure, Stage.QUEUE), told_by=session)

    def settle_orphans(self, epoch: int) -> None:
        """The engine of that registration has no mapping of the arena any more."""
        for span in self._orphans.pop(epoch, ()):
            self._storage.settle(span)

    def lose_engine(self) -> None:
        """What the lost engine was writing is out of reach until it cannot reach it either."""
        engine = self.engine
        assert engine is not None
        for lease in self.leases:
            self.fail(lease, self.engine_lost(lease.stage))
            self._orphan(lease, engine, writer="an engine that is not connected")
        self._leases.clear()
        if not engine.lifeline.held:
            self.settle_orphans(engine.epoch)
        failure = self.engine_lost(Stage.QUEUE)
        for room, claims in self._claims.items():
            _tell(room, claims, failure)
        self._claims.clear()
        self.engine = None

    def engine_lost(self, stage: Stage) -> TransferFailed:
        detail = f"the engine of prefill pod {self._pod} is not connected to its agent"
        return TransferFailed(Cause.ENGINE_LOST, stage=stage, detail=detail)

    def _record(
        self,
        room: int,
        failure: TransferFailed,
        decode_pod: str,
        *,
        pulled: Collection[str] = (),
    ) -> None:
        parts = self.engine.parts if self.engine else {}
        late = (parts.keys() - pulled) or parts.keys()  # as decode counts: see its own _record
        self._outcomes.failed(
            failure,
            room=room,
            state_types={parts[name].state_type for name in late},
            pods=Pods(prefill=self._pod, decode=decode_pod),
        )

    def _sweep(self, now: float) -> None:
        for lease in self.leases:
            limit, failure = self._patience(lease)
            waited = now - lease.moved_at
            if not lease.ended and waited > limit and (lease.last_offered or not lease.claimed):
                self.fail(lease, failure)
            if lease.ended and waited > limit + REMEMBER_S:
                self._abandon(lease)
        self._given_up.sweep(now)

    def _patience(self, lease: Lease) -> tuple[float, TransferFailed]:
        if not lease.claimed and not lease.last_offered:
            return self._unfinished()
        if not lease.claimed:
            return self._unclaimed(lease)
        limit = sum(self._timeouts.limit(stage) for stage in _CLAIMED_STAGES) + _GRACE_S
        detail = f"decode has neither taken it nor failed within {limit:g} s"
        return limit, TransferFailed(
            Cause.TIMEOUT, stage=lease.stage, detail=detail, peer_pod=lease.decode_pod
        )

    def _unfinished(self) -> tuple[float, TransferFailed]:
        """Its decode may be queueing itself; but not for longer than it may wait for prefill."""
        detail = f"begun, and no decode agent claimed the room within {self._keep_s:g} s"
        return self._keep_s, TransferFailed(Cause.TIMEOUT, stage=Stage.QUEUE, detail=detail)

    def _unclaimed(self, lease: Lease) -> tuple[float, TransferFailed]:
        limit = min(self._timeouts.limit(stage) for stage in (Stage.BOOTSTRAP, Stage.QUEUE))
        if not self._decoders():
            limit = min(limit, _ALONE_S)
            detail = f"offered, and no decode engine has been there to claim it for {limit:g} s"
            return limit, TransferFailed(Cause.ENGINE_LOST, stage=Stage.QUEUE, detail=detail)
        detail = f"offered, and no decode agent claimed the room within {limit:g} s"
        if lease.claims:
            detail = (
                f"offered, and {len(lease.claims)} of the {lease.readers} decode ranks that read "
                f"it claimed the room, no other within {limit:g} s"
            )
        return limit, TransferFailed(Cause.TIMEOUT, stage=Stage.QUEUE, detail=detail)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _awaits(claims: Sequence[Claim], refuser: Session) -> bool:
    """Whether a refuser's claim is still to come: none has, or those of its other ranks have."""
    return all(
        claim.session.peer.group == refuser.peer.group and claim.session.theirs != refuser.theirs
        for claim in claims
    ) and (not claims or len(claims) < claims[0].readers)


def _tell(
    room: int, claims: Sequence[Claim], failure: TransferFailed, *, told_by: Session | None = None
) -> None:
    for claim in claims:
        if claim.session is not told_by:
            tell(claim.session, room=room, request=claim.request, failure=failure)
