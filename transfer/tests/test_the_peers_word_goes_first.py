"""Bytes that came wrong, and why: the control connection may still be about to say."""

import asyncio
from types import SimpleNamespace

from disagg_transfer.accounting import Part
from disagg_transfer.agent.credits import Credits
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.landing import Landing, Source, Tools
from disagg_transfer.agent.storage import Storage
from disagg_transfer.arena import ArenaMemory
from disagg_transfer.contract import Cause, FaultSwitch, Integrity, Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import TransferFailed
from disagg_transfer.integrity import Sampling
from disagg_transfer.lane import ReadEvent
from disagg_transfer.limits import CreditLimits, QuarantineLimits
from disagg_transfer.protocol import Offer

PART = Part(component="kv", state_type="kv", item_bytes=4096, items=1)
OFFER = Offer(
    room=1,
    request=bytes(16),
    epoch=1,
    index=0,
    last=True,
    component="kv",
    chunk=0,
    first=0,
    items=1,
    final=True,
    offset=0,
    nbytes=4096,
    digest=b"of other bytes!!",
    aux=b"",
)


class FakeLane:
    """Every read is done at once, with whatever was in memory."""

    def read(self, _peer, *, listener, **_place):
        listener(ReadEvent.POSTED, "")
        listener(ReadEvent.DONE, "")


class Request:
    def __init__(self):
        self.failed = asyncio.get_running_loop().create_future()
        self.landing = None

    def started(self, *_): ...

    def stopped(self, *_): ...

    def landed(self, chunk):
        raise AssertionError(f"{chunk} was taken for good")

    def guarded(self, step):
        try:
            step()
        except TransferFailed as failure:
            self.fail(failure)

    def fail(self, failure):
        if not self.failed.done():
            self.failed.set_result(failure)
            self.landing.give_up(with_engine=())


def land_wrong_bytes():
    """A landing whose only chunk comes with bytes that its digest is not of."""
    request, ended = Request(), asyncio.Event()
    storage = Storage(ArenaMemory(1 << 20), limits=QuarantineLimits())
    tools = Tools(
        lane=FakeLane(),
        storage=storage,
        routes=None,
        faults=Faults(FaultSwitch.DISABLED),
        timeouts=Timeouts(default_s=9, stages={}, state_types={}),
        integrity=Sampling(mode=Integrity.ALWAYS, rate=0.5),
    )
    request.landing = Landing(request, tools=tools, begun_at=0.0)
    session = SimpleNamespace(ended=ended, peer=SimpleNamespace(pod="prefill"))
    fabric = SimpleNamespace(name="n", credits=Credits(CreditLimits()), read_succeeded=lambda: None)
    layout = SimpleNamespace(arena_base=0)
    request.landing.begin(Source(session=session, layout=layout, fabric=fabric))
    request.landing.fetch(OFFER, PART)
    return request, ended, storage


async def test_bytes_that_came_wrong_are_a_digest_mismatch():
    request, _, storage = land_wrong_bytes()
    failure = await asyncio.wait_for(request.failed, 2)
    assert (failure.cause, failure.component) == (Cause.DIGEST_MISMATCH, "kv")
    assert storage.used == 0


async def test_a_request_given_up_by_prefill_ends_with_its_words_and_not_as_a_mismatch():
    """Prefill took the memory back, and the read met another request's bytes there."""
    request, _, storage = land_wrong_bytes()
    for _ in range(5):  # the read's events, and whatever they start
        await asyncio.sleep(0)
    assert not request.failed.done()
    request.fail(TransferFailed(Cause.ABORTED, stage=Stage.NOTIFY, detail="as prefill says"))
    assert request.failed.result().cause is Cause.ABORTED
    assert storage.used == 0


async def test_a_peer_that_is_lost_meanwhile_is_the_cause():
    request, ended, _ = land_wrong_bytes()
    asyncio.get_running_loop().call_soon(ended.set)
    failure = await asyncio.wait_for(request.failed, 2)
    assert failure.cause is Cause.PEER_LOST
