"""Lists and watches of a server that pages, forgets, breaks off, falls silent and talks nonsense."""

import asyncio
import json
import time

import pytest
from aiohttp import web

from disagg_operator import gateway as gateway_module
from disagg_operator import names, watches
from disagg_operator.kinds import Kind
from disagg_operator.store import Store
from disagg_operator.watches import STUCK_AFTER_S, Watches

OWNER = ("ns", "tiny")
WITHIN_S = 10.0


def service(uid, *, version=1, revision="one"):
    return {
        "metadata": {
            "name": f"service-{uid}",
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {names.LABEL_DEPLOYMENT: "tiny"},
        },
        "spec": {"selector": {names.LABEL_REVISION: revision}},
    }


class FaultyServer:
    """Has services, in pages of two; what its watches say, and how they end, is the test's."""

    def __init__(self):
        self.services, self.version = {}, 1
        self.requests, self.told = [], asyncio.Queue()
        self.refusals, self.next = [], None
        self.closed = ""  # a namespace

    async def handle(self, request):
        self.requests.append(dict(request.query))
        if self.closed and f"/namespaces/{self.closed}/" in request.path:
            return web.json_response({"kind": "Status", "message": "closed"}, status=403)
        if self.refusals:
            code = self.refusals.pop(0)
            headers = {"Retry-After": "1"} if code == 429 else {}
            return web.json_response({"kind": "Status", "code": code}, status=code, headers=headers)
        return await self.watch(request) if "watch" in request.query else self.page(request)

    def page(self, request):
        begin = int(request.query.get("continue", "0"))
        found = list(self.services.values())
        rest = str(begin + 2) if begin + 2 < len(found) else ""
        metadata = {"resourceVersion": str(self.version), "continue": rest}
        return web.json_response({"metadata": metadata, "items": found[begin : begin + 2]})

    async def watch(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        while (said := await self.heard_by_the_newest()) is not None:
            await response.write(said)
        return response

    async def heard_by_the_newest(self):
        """None for a watch after which another one was begun."""
        if self.next is not None:
            self.next.cancel()
        mine = self.next = asyncio.ensure_future(self.told.get())
        await asyncio.wait([mine])
        return None if mine.cancelled() else mine.result()

    def say(self, event_type, body, *, end=b"\n"):
        self.told.put_nowait(json.dumps({"type": event_type, "object": body}).encode() + end)

    def end_watch(self):
        self.told.put_nowait(None)

    def lists(self):
        return [query for query in self.requests if "watch" not in query]

    def since(self):
        return [query["resourceVersion"] for query in self.requests if "watch" in query]


class Desk:
    def __init__(self, server, gateway, namespaces=(None,)):
        self.server, self.gateway, self.now = server, gateway, 0.0
        self.woken = []
        self.store = Store(wake=self.woken.append)
        self.watches = Watches(
            gateway=gateway,
            store=self.store,
            kinds=[Kind.SERVICE],
            namespaces=namespaces,
            clock=lambda: self.now,
        )

    def revisions(self):
        return {record.uid: record.revision for record in self.store.of(OWNER, Kind.SERVICE)}

    async def until(self, probe, *, within_s=WITHIN_S):
        deadline = time.monotonic() + within_s
        while not probe():
            assert time.monotonic() < deadline, (self.revisions(), self.server.requests)
            assert not self.running.done(), self.running.exception()
            await asyncio.sleep(0.005)


@pytest.fixture
async def desk(gateway_to, monkeypatch):
    for module, name in ((gateway_module, "RETRY_BASE_S"), (watches, "RETRY_BASE_S")):
        monkeypatch.setattr(module, name, 0.001)
    server = FaultyServer()
    server.services = {uid: service(uid) for uid in "abcde"}
    async with gateway_to(server) as gateway:
        found = Desk(server, gateway)
        async with asyncio.TaskGroup() as group:
            [found.running] = found.watches.begin(group)
            # The first watch follows the list by itself: what a test counts begins after it.
            await found.until(lambda: found.watches.complete("ns") and server.since())
            yield found
            found.running.cancel()


async def test_a_list_comes_in_pages_and_the_watch_begins_where_it_was_made(desk):
    assert set(desk.revisions()) == set("abcde")
    assert [query.get("continue") for query in desk.server.lists()] == [None, "2", "4"]
    assert desk.server.lists()[0]["labelSelector"] == names.MANAGED_SELECTOR
    assert desk.server.since() == ["1"]


async def test_what_happens_is_in_the_store_also_when_it_comes_in_pieces(desk):
    changed = {"type": "MODIFIED", "object": service("a", version=2, revision="two")}
    deleted = {"type": "DELETED", "object": service("b", version=3)}
    said = b"".join(json.dumps(event).encode() + b"\n" for event in (changed, deleted))
    for begin in range(0, len(said), 50):
        desk.server.told.put_nowait(said[begin : begin + 50])
    await desk.until(lambda: "b" not in desk.revisions())
    assert desk.revisions()["a"] == "two"


async def test_a_watch_that_ends_or_breaks_is_taken_up_where_it_was(desk):
    desk.server.say("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
    desk.server.end_watch()
    await desk.until(lambda: desk.server.since()[-1:] == ["7"])
    desk.server.say("ADDED", service("f", version=8))
    desk.server.say("ADDED", service("never", version=9), end=b"")  # cut off: it comes again
    desk.server.end_watch()
    await desk.until(lambda: desk.server.since()[-1:] == ["8"])
    assert set(desk.revisions()) == set("abcdef")
    assert len(desk.server.lists()) == 3


async def test_a_silent_watch_is_broken_off_and_taken_up(desk, monkeypatch):
    monkeypatch.setattr(gateway_module, "SILENT_S", 0.2)
    desk.server.end_watch()
    await desk.until(lambda: len(desk.server.since()) >= 3)
    assert set(desk.server.since()) == {"1"}
    assert len(desk.server.lists()) == 3


@pytest.mark.parametrize("how", ["as an event", "as an answer"])
async def test_what_went_while_the_version_was_too_old_is_gone(desk, how):
    del desk.server.services["c"]
    desk.server.version = 20
    if how == "as an event":
        desk.server.say("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    else:
        desk.server.refusals = [410]
        desk.server.end_watch()
    await desk.until(lambda: "c" not in desk.revisions())
    await desk.until(lambda: desk.server.since()[-1] == "20")


@pytest.mark.parametrize(
    "said",
    [
        b"<html>a proxy's apology</html>\n",
        b'{"type": "ERROR", "object": {"kind": "Status", "code": 500}}\n',
        b'{"type": "ERROR", "object": {}}\n',
        b"[]\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {"metadata": {}}}\n',
        b"\xff\xfe\n",
    ],
)
async def test_nonsense_is_no_event_and_the_watch_goes_on(desk, said):
    desk.server.told.put_nowait(said)
    await desk.until(lambda: len(desk.server.since()) >= 2)
    desk.server.say("ADDED", service("f", version=2))
    await desk.until(lambda: "f" in desk.revisions())


async def test_an_object_like_none_we_know_is_left_out_by_name(desk, caplog):
    strange = service("a", version=2)
    strange["spec"] = {"selector": 7}
    desk.server.say("MODIFIED", strange)
    desk.server.say("ADDED", service("f", version=3))
    await desk.until(lambda: "f" in desk.revisions())
    assert "a" not in desk.revisions()
    assert "service-a" in caplog.text


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
async def test_a_refused_watch_is_asked_for_again(desk, code):
    desk.server.refusals = [code] * 3
    desk.server.end_watch()
    await desk.until(lambda: not desk.server.refusals)
    desk.server.say("ADDED", service("f", version=2))
    await desk.until(lambda: "f" in desk.revisions())


async def test_what_an_error_says_without_a_message_is_kept(desk, caplog):
    caplog.set_level("INFO")
    desk.server.say("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await desk.until(lambda: len(desk.server.since()) >= 2)
    assert '"reason": "Expired"' in caplog.text


async def test_a_busy_server_is_asked_again_when_it_says(desk):
    desk.server.refusals = [429]
    desk.server.end_watch()
    await desk.until(lambda: not desk.server.refusals)
    refused, asked = time.monotonic(), len(desk.server.requests)
    await desk.until(lambda: len(desk.server.requests) > asked)
    assert time.monotonic() - refused > 0.9  # it said one second; our own pause is 1 ms here


async def test_who_may_not_lead_any_more_asks_for_nothing_and_the_lease_ends_the_work(desk):
    desk.gateway.permitted = lambda: False
    asked = len(desk.server.requests)
    desk.server.end_watch()
    with pytest.raises(AssertionError):
        await desk.until(lambda: len(desk.server.requests) > asked, within_s=0.3)
    desk.gateway.permitted = lambda: True
    desk.server.say("ADDED", service("f", version=2))
    await desk.until(lambda: "f" in desk.revisions())


async def test_a_list_that_is_made_anew_wakes_only_whom_it_concerns(desk):
    desk.store.put(Kind.RESOURCE, {"metadata": {"namespace": "ns", "name": "other", "uid": "r"}})
    desk.woken.clear()
    del desk.server.services["c"]
    desk.server.say("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await desk.until(lambda: "c" not in desk.revisions())
    await desk.until(lambda: len(desk.server.since()) >= 2)
    assert set(desk.woken) == {OWNER}


async def test_a_watch_that_brings_nothing_is_stuck_once_it_had_time_to_heal(desk):
    desk.now = STUCK_AFTER_S
    assert desk.watches.stuck == []
    desk.now += 1
    assert desk.watches.stuck == ["services"]
    desk.server.say("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
    await desk.until(lambda: desk.watches.stuck == [])
    desk.server.refusals = [500] * 1000
    desk.now += STUCK_AFTER_S + 1
    assert desk.watches.stuck == ["services"]


async def test_a_watch_that_is_refused_is_told_and_is_not_stuck(desk):
    desk.server.refusals = [403] * 3
    desk.server.end_watch()
    await desk.until(lambda: desk.watches.refusals)
    assert "/api/v1/services" in desk.watches.refusals[0]
    desk.now += STUCK_AFTER_S + 1
    await desk.until(lambda: not desk.server.refusals and not desk.watches.stuck)
    desk.server.say("ADDED", service("f", version=2))
    await desk.until(lambda: "f" in desk.revisions())
    assert desk.watches.refusals == []


async def test_a_closed_namespace_holds_no_other_up_and_is_complete_once_it_opens(gateway_to):
    server = FaultyServer()
    server.closed = "closed"
    async with gateway_to(server) as gateway:
        desk = Desk(server, gateway, namespaces=["ns", "closed"])
        desk.store.put(Kind.RESOURCE, {"metadata": {"namespace": "ns", "name": "tiny", "uid": "r"}})
        desk.woken.clear()
        async with asyncio.TaskGroup() as group:
            tasks = desk.watches.begin(group)
            desk.running = tasks[0]
            await desk.until(lambda: desk.watches.complete("ns") and desk.watches.refusals)
            assert desk.woken == [OWNER]
            assert not desk.watches.complete("closed")
            assert not desk.watches.complete(None)
            server.closed = ""
            await desk.until(lambda: desk.watches.complete("closed"))
            assert desk.watches.refusals == []
            for task in tasks:
                task.cancel()


async def test_watches_that_do_not_run_are_not_stuck(desk):
    idle = Watches(
        gateway=None,
        store=desk.store,
        kinds=[Kind.SERVICE],
        namespaces=[None],
        clock=lambda: desk.now,
    )
    desk.now = 10 * STUCK_AFTER_S
    assert idle.stuck == []
