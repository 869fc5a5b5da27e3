import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web

from disagg_operator import reports as reports_module
from disagg_operator.reports import ReportFeed, Target

OWNER = ("default", "tiny")


class FakeAgent:
    def __init__(self, report):
        self.report, self.asked, self.code = report, [], 200
        self.shown = []
        self.changed = asyncio.Event()

    async def answer(self, request):
        self.asked.append(dict(request.query))
        self.shown.append(request.headers.get("Authorization"))
        if request.query.get("cursor") == str(self.report.cursor):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 5)
        return web.Response(status=self.code, body=self.report.to_json())

    def tell(self, report):
        self.report = report
        self.changed.set()
        self.changed = asyncio.Event()

    async def start(self, port=0):
        app = web.Application()
        app.add_routes([web.get("/v1/report", self.answer)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        return self.runner.addresses[0][1]


@pytest.fixture
async def agent(reported):
    found = FakeAgent(reported.report("pod-0"))
    found.port = await found.start()
    yield found
    await found.runner.cleanup()


@pytest.fixture
async def feed(monkeypatch):
    monkeypatch.setattr(reports_module, "PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(reports_module, "PAUSE_MAX_S", 0.02)
    async with aiohttp.ClientSession() as session:
        found = ReportFeed(session=session, wake=lambda _: None)
        yield found
        await found.close()


async def until(probe):
    async with asyncio.timeout(5):
        while not probe():  # noqa: ASYNC110 - what is probed has no event of its own
            await asyncio.sleep(0.005)


def target(agent):
    return {"pod-0": Target(uid="u", ip="127.0.0.1", port=agent.port)}


def view(feed):
    return feed.views(OWNER).get("pod-0")


async def test_first_poll_asks_without_waiting_and_the_next_waits(feed, agent):
    feed.follow(OWNER, target(agent))
    await until(lambda: len(agent.asked) == 2)
    assert agent.asked == [{}, {"cursor": "1", "wait_s": "20"}]
    assert view(feed).report == agent.report


async def test_change_is_stored_and_wakes_the_owner(feed, agent, reported, monkeypatch):
    woken = []
    monkeypatch.setattr(feed, "_wake", woken.append)
    feed.follow(OWNER, target(agent))
    await until(lambda: len(agent.asked) == 2)
    assert woken == [OWNER]
    agent.tell(reported.report("pod-0", cursor=2, ready=False))
    await until(lambda: view(feed).report.cursor == 2)
    assert woken == [OWNER, OWNER]


async def test_silence_is_told_once_and_the_last_report_kept(feed, agent, monkeypatch):
    woken = []
    feed.follow(OWNER, target(agent))
    await until(lambda: view(feed) is not None)
    monkeypatch.setattr(feed, "_wake", woken.append)
    await agent.runner.cleanup()
    await until(lambda: view(feed).error)
    first = view(feed).failing_since
    await asyncio.sleep(0.1)
    assert woken == [OWNER]
    assert view(feed).failing_since == first
    assert view(feed).report == agent.report


async def test_agent_that_comes_back_is_heard_at_once(feed, agent, reported):
    feed.follow(OWNER, target(agent))
    await until(lambda: view(feed) is not None)
    await agent.runner.cleanup()
    await until(lambda: view(feed).error)
    agent.report = reported.report("pod-0", incarnation="b")
    await agent.start(agent.port)
    await until(lambda: not view(feed).error)
    assert view(feed).report.incarnation == "b"


@pytest.mark.parametrize("body", [b"{}", b"no json", b'{"version": 2}'])
async def test_report_that_cannot_be_read_is_an_error_with_the_reason(feed, agent, body):
    class Broken:
        cursor = 1

        def to_json(self):
            return body

    agent.report = Broken()
    feed.follow(OWNER, target(agent))
    await until(lambda: view(feed) is not None)
    assert "ReportError: report" in view(feed).error


def with_token(agent, token):
    return {"pod-0": Target(uid="u", ip="127.0.0.1", port=agent.port, token=token)}


async def test_a_new_token_is_shown_from_the_next_poll_and_the_report_kept(feed, agent, reported):
    feed.follow(OWNER, with_token(agent, "one"))
    await until(lambda: len(agent.asked) == 2)
    feed.follow(OWNER, with_token(agent, "two"))
    assert view(feed).report == agent.report
    agent.tell(reported.report("pod-0", cursor=2))
    await until(lambda: len(agent.asked) == 3)
    assert agent.shown == ["Bearer one", "Bearer one", "Bearer two"]


async def test_an_agent_that_refuses_the_token_is_told_apart_from_one_that_is_silent(
    feed, agent, monkeypatch
):
    woken = []
    feed.follow(OWNER, with_token(agent, "secret"))
    await until(lambda: len(agent.asked) == 2)
    monkeypatch.setattr(feed, "_wake", woken.append)
    agent.code = 401
    agent.tell(agent.report)
    await until(lambda: view(feed).refused)
    assert "HTTP 401" in view(feed).error
    assert "secret" not in view(feed).error + repr(with_token(agent, "secret"))
    await agent.runner.cleanup()
    await until(lambda: not view(feed).refused)
    assert view(feed).error
    assert woken == [OWNER, OWNER]


async def test_refusal_by_http_is_an_error(feed, agent):
    agent.code = 500
    feed.follow(OWNER, target(agent))
    await until(lambda: view(feed) is not None)
    assert "HTTP 500" in view(feed).error


async def test_pod_that_is_gone_is_not_asked_any_more(feed, agent):
    feed.follow(OWNER, target(agent))
    await until(lambda: view(feed) is not None)
    feed.follow(OWNER, {})
    assert feed.pollers == 0
    assert feed.views(OWNER) == {}


async def test_recreated_pod_of_the_same_name_starts_anew(feed, agent):
    feed.follow(OWNER, target(agent))
    await until(lambda: len(agent.asked) == 2)
    feed.follow(OWNER, {"pod-0": Target(uid="other", ip="127.0.0.1", port=agent.port)})
    await until(lambda: len(agent.asked) >= 3)
    assert agent.asked[2] == {}


async def test_following_the_same_pods_again_changes_nothing(feed, agent):
    feed.follow(OWNER, target(agent))
    feed.follow(OWNER, target(agent))
    await until(lambda: len(agent.asked) == 2)
    assert feed.pollers == 1


async def test_forgotten_owner_has_no_pollers(feed, agent):
    feed.follow(OWNER, target(agent))
    feed.forget(OWNER)
    assert feed.pollers == 0
    assert feed.views(OWNER) == {}
