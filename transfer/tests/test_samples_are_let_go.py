"""Prefill holds memory for a sample no longer than decode reads it."""

import asyncio
from types import SimpleNamespace

import pytest

from disagg_transfer.agent.samples import MAX_HELD, Samples
from disagg_transfer.protocol import SampleDone, SampleReady, SampleRefused, SampleWanted

NBYTES = 64


class FakeStorage:
    """Counts what it has lent."""

    def __init__(self):
        self.lent, self.idle = 0, asyncio.Event()

    def spare(self, nbytes):
        self.lent += 1
        self.idle.clear()
        return SimpleNamespace(offset=0, nbytes=nbytes)

    def write(self, span, data):
        assert len(data) == span.nbytes

    def free(self, span):
        self.lent -= 1
        if not self.lent:
            self.idle.set()

    async def has_all(self):
        async with asyncio.timeout(10):
            await self.idle.wait()


class FakeSession:
    def __init__(self):
        self.ours, self.said = 0, asyncio.Queue()

    def send(self, message):
        self.said.put_nowait(message)

    async def hears(self):
        return await asyncio.wait_for(self.said.get(), 10)


@pytest.fixture
def storage():
    return FakeStorage()


@pytest.fixture
def samples(storage):
    return Samples(lambda rank: storage, connections=tuple)


def wanted(number):
    return SampleWanted(number=number, seed=bytes(16), nbytes=NBYTES)


async def test_one_is_held_until_it_is_done_and_no_second_beside_it(samples, storage):
    session = FakeSession()
    samples.on_message(session, wanted(1))
    assert isinstance(await session.hears(), SampleReady)
    samples.on_message(session, wanted(2))
    assert isinstance(await session.hears(), SampleRefused)
    samples.on_message(session, SampleDone(number=2))
    await asyncio.sleep(0)
    assert storage.lent == 1
    samples.on_message(session, SampleDone(number=1))
    await storage.has_all()
    samples.on_message(session, wanted(3))
    assert isinstance(await session.hears(), SampleReady)
    samples.on_session_lost(session)
    await storage.has_all()


async def test_one_that_is_done_as_soon_as_it_is_asked_for_is_not_held(samples, storage):
    """Both words in one turn of the loop: decode asked, and its engine registered anew."""
    session = FakeSession()
    samples.on_message(session, wanted(1))
    samples.on_message(session, SampleDone(number=1))
    samples.on_message(session, wanted(2))
    said = [await session.hears(), await session.hears()]
    assert {(type(each), each.number) for each in said} == {(SampleReady, 1), (SampleReady, 2)}
    assert storage.lent == 1
    samples.on_session_lost(session)
    await storage.has_all()


async def test_who_asks_and_gives_up_on_and_on_has_no_more_at_work_than_others(samples, storage):
    session = FakeSession()
    for number in range(10):
        samples.on_message(session, wanted(number))
        samples.on_message(session, SampleDone(number=number))
    said = [await session.hears() for _ in range(10)]
    assert sum(isinstance(each, SampleReady) for each in said) == MAX_HELD
    await storage.has_all()
