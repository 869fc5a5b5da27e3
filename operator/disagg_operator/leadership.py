"""One operator at a time, by a Lease.

The kubernetes package brings an election of its own; it stamps local time as UTC, ends at the first
broken connection, and does not give the Lease back, so that every rollout of the operator would
wait for its expiry.

Clocks of two machines are never compared: a candidate takes over when the Lease it sees has not
changed for the Lease's own duration by the candidate's clock. A leader that could not renew for
`RENEW_WITHIN_S` stops before that, so two never write at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from disagg_operator.errors import ApiConflictError, ApiError, ApiNotFoundError
from disagg_operator.kinds import Json, Kind
from disagg_operator.timestamps import timestamp_us

DURATION_S = 10
# The rest of the duration is for the requests that are on their way.
RENEW_WITHIN_S = 6.0
RETRY_S = 2.0
REQUEST_TIMEOUT_S = 2.0
logger = logging.getLogger(__name__)


class LeaseKeeper(Protocol):
    """The part of the gateway that an election needs; one attempt each."""

    async def read(self, kind: Kind, *, namespace: str, name: str) -> Json: ...
    async def create(self, kind: Kind, body: Json) -> Json: ...
    async def replace(self, kind: Kind, body: Json) -> Json: ...


@dataclass(slots=True)
class Sighting:
    """The Lease as it was when it last changed, and when that was by our clock."""

    version: str = ""
    at: float = 0.0

    def saw(self, lease: Json, *, now: float) -> None:
        version = lease["metadata"]["resourceVersion"]
        if version != self.version:
            self.version, self.at = version, now


def may_take(lease: Json, *, identity: str, sighting: Sighting, now: float) -> bool:
    """Whether the Lease is ours, nobody's, or has stood still for its whole duration."""
    spec = lease.get("spec", {})
    if spec.get("holderIdentity", "") in {"", identity}:
        return True
    return now - sighting.at >= float(spec.get("leaseDurationSeconds") or DURATION_S)


@dataclass(slots=True, kw_only=True)
class Election:
    """`identity` is of this process, never of a restarted one."""

    keeper: LeaseKeeper
    namespace: str
    name: str
    identity: str
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _sighting: Sighting = field(default_factory=Sighting)
    _held: Json | None = None
    _renewed: float = 0.0

    async def win(self) -> None:
        """Return once this process leads."""
        while not await self._try():  # noqa: ASYNC110 - what is waited for is in the cluster
            await asyncio.sleep(RETRY_S)
        logger.info("%s leads by Lease %s/%s", self.identity, self.namespace, self.name)

    async def hold(self) -> None:
        """Renew; return when leadership can no longer be vouched for."""
        while self.leads():
            await asyncio.sleep(RETRY_S)
            await self._try()

    def leads(self) -> bool:
        """Whether nobody else can have taken over yet: asked before every write."""
        return self._held is not None and self.clock() - self._renewed < RENEW_WITHIN_S

    async def release(self) -> None:
        """Let the next one lead at once; best effort."""
        if self._held is None:
            return
        body = self._body(self._held)
        body["spec"]["holderIdentity"] = ""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self.keeper.replace(Kind.LEASE, body)
        except (ApiError, TimeoutError) as error:
            logger.warning("Lease not given back: %s", error)
        self._held = None

    async def _try(self) -> bool:
        # Counted from before the request: the server may have stamped it as early as that.
        asked = self.clock()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                if not await self._take():
                    return False
        except ApiConflictError:
            return False  # another candidate was faster; the next look says who
        except (ApiError, TimeoutError) as error:
            logger.warning("Lease %s/%s: %s", self.namespace, self.name, error or "no answer")
            return False
        self._renewed = asked
        return True

    async def _take(self) -> bool:
        try:
            lease = await self.keeper.read(Kind.LEASE, namespace=self.namespace, name=self.name)
        except ApiNotFoundError:
            self._held = await self.keeper.create(Kind.LEASE, self._body(None))
            return True
        now = self.clock()
        self._sighting.saw(lease, now=now)
        if not may_take(lease, identity=self.identity, sighting=self._sighting, now=now):
            self._held = None
            return False
        self._held = await self.keeper.replace(Kind.LEASE, self._body(lease))
        return True

    def _body(self, lease: Json | None) -> Json:
        """The Lease held by us; with the version that was read, so that one candidate wins."""
        now = timestamp_us(self.wall_clock())
        before = (lease or {}).get("spec", {})
        ours = before.get("holderIdentity") == self.identity
        changes = int(before.get("leaseTransitions") or 0)
        metadata = {"namespace": self.namespace, "name": self.name}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": Kind.LEASE.api_version,
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": before.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": changes if ours or lease is None else changes + 1,
            },
        }
