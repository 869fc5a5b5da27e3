"""Who leads: the decision alone, then real elections on a real API server."""

import asyncio
import itertools
import time
import uuid
from types import SimpleNamespace

import pytest

from disagg_operator import leadership
from disagg_operator.errors import ApiConflictError, ApiNotFoundError, ApiUnavailableError
from disagg_operator.gateway import Gateway
from disagg_operator.kinds import Kind
from disagg_operator.leadership import DURATION_S, Election, Sighting, may_take
from disagg_operator.metrics import Metrics


def lease(holder, *, version="1"):
    spec = {"holderIdentity": holder, "leaseDurationSeconds": DURATION_S}
    return {"metadata": {"resourceVersion": version}, "spec": spec}


def seen(version, at):
    return Sighting(version=version, at=at)


def test_lease_of_nobody_and_ours_may_be_taken():
    assert may_take(lease(""), identity="a", sighting=seen("1", 100), now=100)
    assert may_take(lease("a"), identity="a", sighting=seen("1", 100), now=100)


def test_lease_of_another_may_be_taken_only_after_it_stood_still_for_its_duration():
    sighting = seen("1", 100)
    assert not may_take(lease("b"), identity="a", sighting=sighting, now=100 + DURATION_S - 0.1)
    assert may_take(lease("b"), identity="a", sighting=sighting, now=100 + DURATION_S)


def test_renewal_by_another_starts_the_wait_again():
    sighting = seen("1", 100)
    sighting.saw(lease("b", version="2"), now=109)
    assert not may_take(lease("b", version="2"), identity="a", sighting=sighting, now=112)


def test_leader_gives_up_before_anybody_may_take_over():
    longest = leadership.RENEW_WITHIN_S + leadership.RETRY_S + leadership.REQUEST_TIMEOUT_S
    assert longest <= DURATION_S


@pytest.fixture
async def keeper(kubeconfig, monkeypatch):
    from disagg_operator.credentials import client_configuration

    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    metrics = Metrics()
    async with Gateway(
        configuration=await client_configuration(), metrics=metrics, attempts=1
    ) as gateway:
        yield gateway
    await asyncio.sleep(0.2)  # TLS connections finish closing after the session


@pytest.fixture
def candidate(keeper):
    name = f"election-{uuid.uuid4().hex[:8]}"
    clock = SimpleNamespace(skip=0.0)

    def make(identity, through=keeper):
        return Election(
            keeper=through,
            namespace="default",
            name=name,
            identity=identity,
            clock=lambda: time.monotonic() + clock.skip,
        )

    make.clock, make.name = clock, name
    return make


@pytest.mark.api
async def test_one_of_many_candidates_wins(candidate):
    candidates = [candidate(f"c{number}") for number in range(8)]
    won = await asyncio.gather(*(each._try() for each in candidates))
    assert won.count(True) == 1


@pytest.mark.api
async def test_released_lease_is_taken_at_once_and_the_change_is_counted(candidate, keeper):
    first, second = candidate("first"), candidate("second")
    await first.win()
    assert not await second._try()
    await first.release()
    assert await second._try()
    held = await keeper.read(Kind.LEASE, namespace="default", name=candidate.name)
    assert held["spec"]["holderIdentity"] == "second"
    assert held["spec"]["leaseTransitions"] == 1


@pytest.mark.api
async def test_lease_of_a_dead_leader_is_taken_after_its_duration(candidate):
    await candidate("dead").win()
    next_one = candidate("next")
    assert not await next_one._try()
    candidate.clock.skip = DURATION_S
    assert await next_one._try()


@pytest.mark.api
async def test_leader_whose_lease_was_taken_stops(candidate, monkeypatch):
    monkeypatch.setattr(leadership, "RETRY_S", 0.01)
    stale, thief = candidate("stale"), candidate("thief")
    await stale.win()
    assert not await thief._try()  # the sighting that the wait counts from
    candidate.clock.skip = DURATION_S
    assert await thief._try()
    candidate.clock.skip = 0.0
    async with asyncio.timeout(5):
        await stale.hold()


class UnreachableServer:
    """A fake for fault injection: the API server as it is when the network is gone."""

    async def read(self, kind, *, namespace, name):
        raise ApiUnavailableError("no route", code=0)

    create = replace = None


async def test_leader_that_cannot_renew_stops_in_time(monkeypatch):
    monkeypatch.setattr(leadership, "RETRY_S", 0.001)
    ticks = itertools.count(0.0, 0.5)
    election = Election(
        keeper=UnreachableServer(),
        namespace="default",
        name="x",
        identity="a",
        clock=lambda: next(ticks),
    )
    election._held = lease("a")
    assert election.leads()
    async with asyncio.timeout(5):
        await election.hold()
    assert not election.leads()


@pytest.mark.parametrize("error", [ApiConflictError, ApiNotFoundError])
async def test_lost_race_is_no_leadership(error):
    class Raced(UnreachableServer):
        async def read(self, kind, *, namespace, name):
            raise ApiNotFoundError("gone", code=404)

        async def create(self, kind, body):
            raise error("taken", code=409)

    election = Election(keeper=Raced(), namespace="default", name="x", identity="a")
    assert not await election._try()
