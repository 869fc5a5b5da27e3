"""What a list says and a watch does not: objects that are gone, and watches that bring nothing."""

import asyncio

import pytest

from disagg_operator.census import PERIOD_S, SETTLE_S, STUCK_AFTER_S, Census
from disagg_operator.errors import ApiUnavailableError
from disagg_operator.kinds import Kind

OWNER = ("default", "tiny")


class Server:
    """What the server has, by uid; `meanwhile` happens while it is being listed."""

    def __init__(self):
        self.versions, self.lists, self.meanwhile = {}, 0, lambda: None
        self.error = None

    async def listed(self, kind):
        self.lists += 1
        self.meanwhile()
        if self.error:
            raise self.error
        return dict(self.versions)


class Desk:
    """A census of pods whose clock and watch the test holds."""

    def __init__(self):
        self.server, self.woken, self.now = Server(), [], 0.0
        self.census = Census(
            [Kind.POD], listed=self.server.listed, wake=self.woken.append, clock=lambda: self.now
        )

    def watch(self, event_type, uid, version="1"):
        body = {"metadata": {"uid": uid, "resourceVersion": version}}
        self.census.event(Kind.POD, event_type, body, OWNER)

    async def pass_time(self, seconds):
        """Whatever is due within that time is done."""
        self.now += seconds
        task = asyncio.create_task(self.census.run())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()


@pytest.fixture
def desk():
    return Desk()


async def test_what_is_not_listed_any_more_is_gone_and_its_owner_looks(desk):
    desk.watch("ADDED", "a")
    desk.watch("ADDED", "b")
    desk.server.versions = {"b": "1"}
    await desk.pass_time(PERIOD_S)
    assert desk.census.gone == {"a"}
    assert desk.woken == [OWNER]
    await desk.pass_time(PERIOD_S)
    assert desk.woken == [OWNER], "told once"
    desk.watch("DELETED", "a")
    assert desk.census.gone == set()


async def test_a_watch_that_begins_anew_is_compared_soon(desk):
    desk.watch("ADDED", "a")
    await desk.pass_time(SETTLE_S)
    assert desk.server.lists == 0
    desk.watch(None, "b")
    desk.server.versions = {"b": "1"}
    await desk.pass_time(SETTLE_S)
    assert (desk.server.lists, desk.census.gone) == (1, {"a"})


async def test_what_comes_or_goes_while_it_is_listed_is_no_evidence(desk):
    desk.watch("ADDED", "a")

    def meanwhile():
        desk.watch("ADDED", "new")
        desk.watch("DELETED", "a")

    desk.server.meanwhile = meanwhile
    await desk.pass_time(PERIOD_S)
    assert desk.census.gone == set()
    assert desk.census.stuck == []


async def test_a_watch_that_brings_nothing_is_stuck_once_it_had_time_to_heal(desk):
    desk.watch("ADDED", "a")
    desk.server.versions = {"a": "2"}
    await desk.pass_time(PERIOD_S)
    assert desk.census.stuck == []
    await desk.pass_time(STUCK_AFTER_S)
    assert desk.census.stuck == []
    await desk.pass_time(1)
    assert desk.census.stuck == ["pods"]
    desk.watch("MODIFIED", "a", "2")
    await desk.pass_time(PERIOD_S)
    assert desk.census.stuck == []


async def test_an_object_that_was_never_brought_counts_too(desk):
    desk.server.versions = {"a": "1"}
    await desk.pass_time(PERIOD_S)
    await desk.pass_time(STUCK_AFTER_S + 1)
    assert desk.census.stuck == ["pods"]


async def test_an_object_that_changes_all_the_time_is_no_stuck_watch(desk):
    for version in range(10):
        desk.watch("MODIFIED", "a", str(version))
        desk.server.versions = {"a": str(version + 1)}
        await desk.pass_time(PERIOD_S)
    assert desk.census.stuck == []


async def test_a_server_that_does_not_answer_proves_nothing(desk):
    desk.watch("ADDED", "a")
    desk.server.error = ApiUnavailableError("away", code=0)
    await desk.pass_time(PERIOD_S)
    assert desk.census.gone == set()
    desk.server.error = None
    await desk.pass_time(PERIOD_S)
    assert desk.census.gone == {"a"}
