"""Requests that are answered while no state moves: seen by the router's counters alone."""

import asyncio
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator import names
from disagg_operator.observe import AgentView
from disagg_operator.router_feed import RouterFeed
from disagg_operator.served import LEAST, Ledger, Look, advance, answered

OWNER = ("default", "tiny")
# As sglang-router 0.3.2 wrote it after one answer of each role and a failed one.
METRICS = """\
# TYPE smg_worker_cb_outcomes_total counter
smg_worker_cb_outcomes_total{worker="http://tiny-prefill-r-0-0.tiny-prefill-r.default.svc:30000",outcome="success"} 3
smg_worker_cb_outcomes_total{worker="http://tiny-decode-r-0-0.tiny-decode-r.default.svc:30000",outcome="success"} 4
smg_worker_cb_outcomes_total{outcome="failure",worker="http://tiny-decode-r-0-0.tiny-decode-r.default.svc:30000"} 12
smg_worker_cb_outcomes_total{outcome="success",worker="http://tiny-decode-r-1-0.tiny-decode-r.default.svc:30000"} 2
smg_http_requests_total{method="POST",path="/generate"} 22
"""


def test_good_answers_are_read_by_pod():
    assert answered(METRICS) == {
        "tiny-prefill-r-0-0": 3,
        "tiny-decode-r-0-0": 4,
        "tiny-decode-r-1-0": 2,
    }


@given(st.text())
def test_any_other_text_is_passed_over(text):
    assert all(count >= 0 for count in answered(text).values())


class Watch:
    """A ledger beside a world's decode pod: what the router and the agent say, look by look."""

    def __init__(self, world, reported):
        self.world, self.reported = world, reported
        self.number, self.count = 0, 0
        self.agent()

    def agent(self, *, transfers=0, failures=0, **fields):
        row = self.reported.row("kv", transfers=transfers, failures=failures)
        self.world.tell(self.reported.report(self.world.decode, rows=[row], **fields))

    def look(self, answers=0, *, router="r1"):
        """One more look at the router, which gave so many answers since; then the status."""
        self.number, self.count = self.number + 1, self.count + answers
        look = Look(number=self.number, answered={self.world.decode: self.count})
        self.world.ledger = advance(self.world.ledger, {router: look}, self.world.views)
        return self.world.condition(names.TRANSFER_HEALTHY)


@pytest.fixture
def watch(world, reported):
    return Watch(world, reported)


def test_answers_without_a_transfer_are_told_by_pod(world, watch):
    watch.look()
    assert watch.look(LEAST).reason == "NoData", "its reports may be under way"
    told = watch.look()
    assert (told.status, told.reason) == ("False", "NoTransferTraffic")
    assert f"decode pod {world.decode} answered {LEAST} or more requests" in told.message
    ready = world.condition(names.READY)
    assert (ready.status, ready.reason) == ("False", "NoTransferTraffic")


def test_a_few_answers_are_no_evidence(watch):
    watch.look()
    watch.look(LEAST - 1)
    assert watch.look().reason == "NoData"


def test_what_a_router_counted_before_the_first_look_counts_for_nothing(world, watch):
    world.ledger = advance(world.ledger, {}, world.views)
    watch.look(100)
    watch.look()
    assert watch.look().reason == "NoData"


@pytest.mark.parametrize("ended", [{"transfers": 1}, {"failures": 1}])
def test_state_that_moves_or_fails_to_is_no_idle_engine(watch, ended):
    watch.look()
    watch.look(LEAST)
    watch.agent(**ended)
    assert watch.look(LEAST).reason != "NoTransferTraffic"
    watch.agent(**{name: count + 1 for name, count in ended.items()})
    assert watch.look().reason != "NoTransferTraffic"


def test_an_engine_that_stops_to_ask_is_told_and_one_that_asks_again_is_healed(watch):
    watch.agent(transfers=7)
    watch.look()
    watch.look(LEAST)
    assert watch.look().reason == "NoTransferTraffic"
    watch.agent(transfers=8)
    assert watch.look(1).reason != "NoTransferTraffic"


def test_the_same_look_seen_by_two_passes_counts_once(watch):
    watch.look()
    watch.look(LEAST)
    watch.number -= 1
    assert watch.look().reason == "NoData"


def test_what_was_answered_before_a_transfer_is_forgotten_with_it(watch):
    watch.look()
    watch.look(LEAST)
    watch.agent(transfers=1)
    watch.number -= 1
    watch.look()
    assert watch.look().reason != "NoTransferTraffic"


def test_a_router_that_starts_anew_begins_at_zero(watch):
    watch.look()
    watch.look(LEAST - 1)
    watch.count = 0
    watch.look(router="r2")
    watch.look(router="r2")
    assert watch.look(router="r2").reason == "NoData"


def test_an_agent_that_is_silent_is_not_judged(world, watch):
    watch.look()
    watch.look(LEAST)
    view = world.views[world.decode]
    world.views[world.decode] = replace(view, error="TimeoutError", failing_since=0.0)
    watch.look()
    world.views[world.decode] = AgentView(report=view.report)
    assert watch.look().reason != "NoTransferTraffic"


def test_an_operator_that_starts_does_not_forget_what_still_is_true(world, watch):
    watch.look()
    watch.look(LEAST)
    assert watch.look().reason == "NoTransferTraffic"
    world.ledger = Ledger()
    assert watch.look().reason == "NoTransferTraffic"
    watch.agent(transfers=1)
    assert watch.look().reason == "NoData"


ANSWERS = st.lists(st.integers(0, 9), max_size=20)


@given(answers=ANSWERS)
def test_of_answers_without_motion_none_is_lost_and_none_counted_twice(reported, answers):
    views = {"d": AgentView(report=reported.report("d"))}
    ledger, total = Ledger(), 0
    for number, count in enumerate([0, *answers, 0]):
        total += count
        look = Look(number=number, answered={"d": total})
        ledger = advance(ledger, {"r": look}, views)
    assert ledger.unmoved["d"] == total


class RouterMetrics:
    """A real HTTP server in the router's place; the test sets its counters."""

    def __init__(self):
        self.text = METRICS

    async def answer(self, _):
        return web.Response(text=self.text)

    async def start(self):
        app = web.Application()
        app.add_routes([web.get("/metrics", self.answer)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return self.runner.addresses[0][1]


@pytest.fixture
async def router():
    found = RouterMetrics()
    found.port = await found.start()
    yield found
    await found.runner.cleanup()


@pytest.fixture
async def feed(router):
    woken = asyncio.Queue()
    async with aiohttp.ClientSession() as session:
        found = RouterFeed(session=session, wake=woken.put_nowait, port=router.port, period_s=0.02)
        found.woken = woken
        yield found
        await found.close()


async def test_a_rise_wakes_for_the_look_that_brings_it_and_the_next(feed, router):
    feed.follow(OWNER, {"uid": "127.0.0.1"})
    async with asyncio.timeout(5):
        assert [await feed.woken.get() for _ in range(2)] == [OWNER, OWNER]
    first = feed.looks(OWNER)["uid"]
    assert first.answered["tiny-decode-r-0-0"] == 4
    async with asyncio.timeout(5):
        while feed.looks(OWNER)["uid"].number < first.number + 3:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    assert feed.woken.empty(), "nothing rose"
    router.text = METRICS.replace("} 4", "} 5")
    async with asyncio.timeout(5):
        assert [await feed.woken.get() for _ in range(2)] == [OWNER, OWNER]
    assert feed.looks(OWNER)["uid"].answered["tiny-decode-r-0-0"] == 5


async def test_a_router_that_is_gone_is_forgotten(feed):
    feed.follow(OWNER, {"uid": "127.0.0.1"})
    async with asyncio.timeout(5):
        await feed.woken.get()
    feed.follow(OWNER, {})
    assert feed.looks(OWNER) == {}
