"""Every lease of a prefill agent, the claims that came early, and how each of them ends."""

import asyncio
from collections.abc import Callable, Collection, Iterable
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
        decoders: Callable[[], bool],  # whether any decode engine is behind a session
    ) -> None:
        self._pod, self._storage, self._decoders = pod, storage, decoders
        self._outcomes, self._timeouts = outcomes, timeouts
        self.engine: Engine | None = None
        self._leases: dict[int, Lease] = {}
        self._claims: dict[int, Claim] = {}  # for rooms not begun
        # No longer than the other copy of the request may be under way.
        keep_s = timeouts.limit(Stage.BOOTSTRAP) + timeouts.limit(Stage.QUEUE)
        self._given_up = Tombstones(keep_s=keep_s)
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
        now = self._now()
        self._leases[room] = Lease(room, now, now, claim=self._claims.pop(room, None))

    def claim(self, room: int, claim: Claim) -> Lease | None:
        """Take a claim in, which may come before the room begins; raises when it cannot be had."""
        failure = self._given_up.take(room)
        if failure is not None:
            raise failure
        lease = self._leases.get(room)
        taken = lease.claim if lease else self._claims.get(room)
        if taken is not None or (lease is not None and lease.ended):
            pod = taken.session.peer.pod if taken else "nobody"
            raise misuse(f"room {room} is claimed already, by {pod}")
        if lease is not None:
            lease.claim, lease.moved_at = claim, self._now()
        elif len(self._claims) >= MAX_CLAIMS:
            raise misuse(f"{MAX_CLAIMS} rooms are wanted and not begun")
        else:
            self._claims[room] = claim
        return lease

    # -- ends

    def fail(self, lease: Lease, failure: TransferFailed, *, relay: bool = True) -> None:
        if lease.ended:
            return
        lease.failure = failure
        self.free(lease.held)
        if lease.claim is None:
            self._given_up.put(lease.room, failure, now=self._now())
        elif relay:
            tell(lease.claim.session, room=lease.room, request=lease.claim.request, failure=failure)
        pod = lease.claim.session.peer.pod if lease.claim else failure.peer_pod
        self._record(lease.room, failure, pod, pulled=lease.pulled)
        lease.changed.fire()

    def fail_claim(
        self, room: int, failure: TransferFailed, *, session: Session, request: bytes
    ) -> None:
        """Decode gives up: the lease, or the claim that came before one."""
        lease = self._leases.get(room)
        claim = lease.claim if lease else self._claims.get(room)
        if claim is None or claim.session is not session or claim.request != request:
            return
        if lease is not None:
            self.fail(lease, failure, relay=False)
            return
        del self._claims[room]
        self._given_up.put(room, failure, now=self._now())
        self._record(room, failure, session.peer.pod)

    def give_up(self, room: int, failure: TransferFailed, *, peer: Session | None = None) -> None:
        """A side refuses its copy of a request: `peer`, or with None this pod's engine.

        The other side learns it now or, coming later, then. A refusal changes nothing where the
        refuser's side has taken the room up: it was of another request with the same number, or
        of a decode pod that is not the one the room is for.
        """
        lease = self._leases.get(room)
        claim = lease.claim if lease else self._claims.get(room)
        if (claim if peer else lease) is not None:
            return
        if lease is not None:
            self.fail(lease, failure)
        elif claim is not None:
            del self._claims[room]
            tell(claim.session, room=room, request=claim.request, failure=failure)
            self._record(room, failure, claim.session.peer.pod)
        else:
            self._given_up.put(room, failure, now=self._now())

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

    def lose_session(self, session: Session, failure: TransferFailed) -> None:
        for lease in self.leases:
            if lease.claim is not None and lease.claim.session is session:
                told = restaged(failure, lease.stage)
                self.fail(lease, told, relay=False)
        for room in [room for room, claim in self._claims.items() if claim.session is session]:
            del self._claims[room]

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
            for span in lease.written.values():
                self._storage.quarantine(span, writer="an engine that is not connected")
            self._orphans.setdefault(engine.epoch, []).extend(lease.written.values())
        self._leases.clear()
        if not engine.lifeline.held:
            self.settle_orphans(engine.epoch)
        failure = self.engine_lost(Stage.QUEUE)
        for room, claim in self._claims.items():
            tell(claim.session, room=room, request=claim.request, failure=failure)
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
            if not lease.ended and lease.last_offered and waited > limit:
                self.fail(lease, failure)
            if lease.ended and not lease.written and waited > limit + REMEMBER_S:
                del self._leases[lease.room]
        self._given_up.sweep(now)

    def _patience(self, lease: Lease) -> tuple[float, TransferFailed]:
        if lease.claim is None:
            return self._unclaimed()
        limit = sum(self._timeouts.limit(stage) for stage in _CLAIMED_STAGES) + _GRACE_S
        detail = f"decode has neither taken it nor failed within {limit:g} s"
        pod = lease.claim.session.peer.pod
        return limit, TransferFailed(Cause.TIMEOUT, stage=lease.stage, detail=detail, peer_pod=pod)

    def _unclaimed(self) -> tuple[float, TransferFailed]:
        limit = min(self._timeouts.limit(stage) for stage in (Stage.BOOTSTRAP, Stage.QUEUE))
        if not self._decoders():
            limit = min(limit, _ALONE_S)
            detail = f"offered, and no decode engine has been there to claim it for {limit:g} s"
            return limit, TransferFailed(Cause.ENGINE_LOST, stage=Stage.QUEUE, detail=detail)
        detail = f"offered, and no decode agent claimed the room within {limit:g} s"
        return limit, TransferFailed(Cause.TIMEOUT, stage=Stage.QUEUE, detail=detail)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
