"""Two thousand rooms that nobody comes back for, each in its own way; time is a number."""

import asyncio

import pytest

from disagg_transfer.agent.engine import Engine
from disagg_transfer.agent.lease import Claim
from disagg_transfer.agent.leasebook import MAX_CLAIMS, MAX_LEASES, REMEMBER_S, LeaseBook
from disagg_transfer.agent.lifeline import Lifeline
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.outcomes import Changes, Outcomes
from disagg_transfer.agent.relay import refused
from disagg_transfer.agent.storage import Storage
from disagg_transfer.agent.tombstones import MAX_ROOMS
from disagg_transfer.arena import ArenaMemory
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import TransferFailed
from disagg_transfer.limits import QuarantineLimits
from disagg_transfer.protocol import Fingerprint

ROOMS = 2000
LIMIT_S = 10.0


class Peer:
    """What a claim needs of a session; what is said to it goes nowhere."""

    class peer:  # noqa: N801
        pod = "decode-0"

    def send(self, *messages):
        pass


@pytest.fixture
async def book(monkeypatch):
    loop = asyncio.get_running_loop()
    clock = [loop.time()]
    monkeypatch.setattr(loop, "time", lambda: clock[0])
    storage = Storage(ArenaMemory(ROOMS * 4096), limits=QuarantineLimits())
    book = LeaseBook(
        pod="prefill-0",
        storage=storage,
        outcomes=Outcomes(Metrics(()), Changes()),
        timeouts=Timeouts(default_s=LIMIT_S, stages={}, state_types={}),
        decoders=lambda: 1,
    )
    fingerprint = Fingerprint(model="m", page_size=16, ranks=1, components=())
    lifeline = Lifeline()
    lifeline.watch(lambda: None)
    book.engine = Engine(
        epoch=1, instance="e", lifeline=lifeline, parts={}, fingerprint=fingerprint
    )
    book.storage, book.clock = storage, clock
    yield book
    monkeypatch.undo()


def later(book, seconds):
    """The sweeps of that time."""
    book.clock[0] += seconds
    book._sweep(book.clock[0])


def left(book):
    return {
        "leases": len(book._leases),
        "claims": len(book._claims),
        "given up": len(book._given_up),
        "orphans": len(book._orphans),
        "arena": book.storage.used,
    }


NOTHING = {"leases": 0, "claims": 0, "given up": 0, "orphans": 0, "arena": 0}


def lifetime(book):
    """Longer than any limit of a room, and than the engine may be late to learn of its end."""
    later(book, 6 * LIMIT_S + 5)
    later(book, 6 * LIMIT_S + 5 + REMEMBER_S)
    later(book, 2 * LIMIT_S)


async def test_rooms_begun_and_left(book):
    for room in range(ROOMS):
        book.begin(room)
    assert left(book)["leases"] == ROOMS
    lifetime(book)
    assert left(book) == NOTHING


async def test_rooms_begun_claimed_and_failed_whose_engine_never_learns_it(book):
    peer = Peer()
    for room in range(ROOMS):
        book.claim(room, Claim(session=peer, request=bytes(16), have={}))
        book.begin(room)
        book.fail_claim(room, refused("no"), session=peer, request=bytes(16))
    lifetime(book)
    assert left(book) == NOTHING


async def test_what_an_engine_never_stops_writing_is_unsettled_until_its_mapping_is_gone(book):
    for room in range(ROOMS):
        book.begin(room)
        (span,) = book.storage.reserve_now((4096,))
        book.get(room).written[span.number] = span
        book.fail(book.get(room), refused("no"))
    lifetime(book)
    assert left(book) == {**NOTHING, "orphans": 1, "arena": ROOMS * 4096}
    assert book.storage.unsettled == ROOMS * 4096
    assert "an engine that never said it had stopped" in book.storage.poison
    book.settle_orphans(1)
    assert left(book) == NOTHING
    assert book.storage.poison is None


async def test_rooms_claimed_and_never_begun_end_with_their_session(book):
    peer = Peer()
    for room in range(ROOMS):
        book.claim(room, Claim(session=peer, request=bytes(16), have={}))
    book.lose_session(peer, refused("gone"))
    lifetime(book)
    assert left(book) == NOTHING


async def test_rooms_refused_by_one_side_alone(book):
    for room in range(ROOMS):
        book.give_up(room, refused("no"))
    assert left(book)["given up"] == ROOMS
    lifetime(book)
    assert left(book) == NOTHING


async def test_no_list_of_rooms_grows_past_its_bound(book):
    peer = Peer()
    for room in range(2 * MAX_ROOMS):
        book.give_up(room, refused("no"))
    assert left(book)["given up"] == MAX_ROOMS
    for room in range(10**6, 10**6 + MAX_CLAIMS):
        book.claim(room, Claim(session=peer, request=bytes(16), have={}))
    with pytest.raises(TransferFailed, match="rooms are wanted and not begun"):
        book.claim(1, Claim(session=peer, request=bytes(16), have={}))
    for room in range(2 * 10**6, 2 * 10**6 + MAX_LEASES):
        book.begin(room)
    with pytest.raises(TransferFailed, match="rooms have begun; wait for the release of some"):
        book.begin(3)
