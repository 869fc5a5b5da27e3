import asyncio

import pytest

from disagg_operator import loop as loop_module
from disagg_operator import names
from disagg_operator.errors import (
    AlreadyExistsError,
    ApiForbiddenError,
    ApiNotFoundError,
    ApiUnavailableError,
)
from disagg_operator.kinds import Kind, ObjectReference
from disagg_operator.loop import ResourceLoop
from disagg_operator.metrics import Metrics
from disagg_operator.publish import Publisher
from disagg_operator.report import status_object
from disagg_operator.runtime import Runtime, Wakeups
from disagg_operator.settings import Settings
from disagg_operator.sight import Snapshot

TINY = ObjectReference(namespace="default", name="tiny", uid="u")
SETTINGS = Settings(
    namespaces=(), agent_image="a", engine_image="e", router_image="r", coalesce_s=0.0
)


class FakeGateway:
    """Writes nothing; keeps the statuses and Events, and fails as told."""

    def __init__(self):
        self.statuses, self.events, self.children = [], [], 0
        self.child_error = self.status_error = None

    async def apply_status(self, body):
        if self.status_error:
            raise self.status_error
        self.statuses.append(body["status"])
        return body

    async def apply(self, kind, body):
        return self.child(body)

    async def create(self, kind, body):
        if kind is Kind.EVENT:
            self.events.append(body["reason"])
            return body
        return self.child(body)

    async def replace(self, kind, body):
        return body

    def child(self, body):
        self.children += 1
        if self.child_error:
            raise self.child_error
        return {**body, "metadata": {**body["metadata"], "uid": f"child-{self.children}"}}


class NoReports:
    def follow(self, owner, targets):
        pass

    def views(self, owner):
        return {}

    def forget(self, owner):
        pass


class NoRouters:
    def follow(self, owner, addresses):
        pass

    def looks(self, owner):
        return {}

    def forget(self, owner):
        pass


@pytest.fixture
def gateway():
    return FakeGateway()


class Harness:
    """One loop whose object the test holds; `run_until` waits for what the loop brings about."""

    def __init__(self, gateway):
        self.body = {
            "metadata": {"name": "tiny", "namespace": "default", "uid": "u", "generation": 3},
            "spec": {"model": {"source": "tiny-qwen3-next"}},
        }
        self.stopped, self.brought, self.looks = False, True, 0
        self.runtime = Runtime(
            settings=SETTINGS,
            gateway=gateway,
            feed=NoReports(),
            routers=NoRouters(),
            wakeups=Wakeups(),
            store=None,
            watches=None,
            metrics=Metrics(),
            instance="test",
        )
        self.loop = ResourceLoop(
            runtime=self.runtime,
            resource=TINY,
            snapshot=self.snapshot,
            stopped=lambda: self.stopped,
        )

    def snapshot(self):
        self.looks += 1
        found = Snapshot(body=self.body, pods=(), services=(), routers=(), guards=(), scalers=())
        return found if self.brought else None

    async def run_until(self, probe):
        task = asyncio.create_task(self.loop.run())
        try:
            async with asyncio.timeout(5):
                while not probe():  # noqa: ASYNC110 - what is probed has no event of its own
                    await asyncio.sleep(0.005)
        finally:
            self.stopped = True
            self.runtime.wakeups.wake(TINY.owner)
            await task


@pytest.fixture
async def harness(gateway):
    return Harness(gateway)


def ready_condition(status):
    return next(item for item in status["conditions"] if item["type"] == names.READY)


async def test_pass_writes_the_children_and_one_status(harness, gateway):
    await harness.run_until(lambda: gateway.statuses)
    assert gateway.children == 11
    assert len(gateway.statuses) == 1
    assert gateway.statuses[0]["observedGeneration"] == 3


async def test_metrics_have_the_status_of_a_resource_until_it_goes(harness, gateway):
    metrics, seen = harness.runtime.metrics, []

    def written():
        seen.append(metrics.statuses.get(TINY.owner))
        return bool(gateway.statuses)

    await harness.run_until(written)
    assert seen[-1].to_object() == gateway.statuses[0]
    assert not metrics.statuses
    assert metrics.pass_seconds.count >= 1


async def test_missing_right_is_told_in_the_status(harness, gateway):
    gateway.child_error = ApiForbiddenError("cannot create services", code=403)
    await harness.run_until(lambda: gateway.statuses)
    ready = ready_condition(gateway.statuses[-1])
    assert (ready["status"], ready["reason"]) == ("False", "Forbidden")
    assert "cannot create services" in ready["message"]


async def test_failed_pass_is_tried_again(harness, gateway, monkeypatch):
    monkeypatch.setattr(loop_module, "ERROR_BASE_S", 0.01)
    gateway.child_error = ApiUnavailableError("away", code=503)
    await harness.run_until(lambda: gateway.children >= 6)
    assert harness.runtime.metrics.passes["failed"] >= 2


async def test_name_that_is_taken_is_tried_again(harness, gateway, monkeypatch):
    monkeypatch.setattr(loop_module, "TAKEN_BASE_S", 0.01)
    applied = gateway.apply

    async def free(kind, body):
        error, gateway.child_error = gateway.child_error, None
        try:
            return await applied(kind, body)
        finally:
            gateway.child_error = error

    monkeypatch.setattr(gateway, "apply", free)
    gateway.child_error = AlreadyExistsError("taken", code=409)
    await harness.run_until(lambda: gateway.children >= 12)
    assert harness.runtime.metrics.passes["failed"] == 0
    assert ready_condition(gateway.statuses[-1])["reason"] == "PodsMissing"


async def test_bug_in_a_pass_is_told_and_survived(harness, gateway, monkeypatch):
    monkeypatch.setattr(loop_module, "ERROR_BASE_S", 0.01)
    healthy = loop_module.decide

    def broken(*_, **__):
        monkeypatch.setattr(loop_module, "decide", healthy)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loop_module, "decide", broken)
    await harness.run_until(lambda: len(gateway.statuses) == 2)
    first, second = map(ready_condition, gateway.statuses)
    assert (first["reason"], first["message"]) == ("ReconcileError", "ZeroDivisionError: a bug")
    assert second["reason"] == "ContainerCreating"


async def test_spec_of_another_version_is_refused_and_nothing_touched(harness, gateway):
    harness.body["spec"] = {"model": {"source": "x"}, "paused": "perhaps"}
    await harness.run_until(lambda: gateway.statuses)
    ready = ready_condition(gateway.statuses[-1])
    assert ready["reason"] == "InvalidSpec"
    assert "spec.paused" in ready["message"]
    assert "perhaps" in ready["message"]
    assert gateway.children == 0
    assert gateway.events == ["InvalidSpec"]


async def test_cancelled_loop_ends_and_forgets(harness, gateway):
    task = asyncio.create_task(harness.loop.run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(harness.runtime.wakeups) == 0


async def test_there_is_no_pass_before_the_watches_have_brought_everything(harness, gateway):
    harness.brought = False

    def probe():
        if harness.looks and not harness.brought:
            assert gateway.children == 0
            harness.brought = True
            harness.runtime.wakeups.wake(TINY.owner)
        return gateway.statuses

    await harness.run_until(probe)


@pytest.fixture
def publisher(gateway, world):
    return Publisher(
        writer=gateway,
        resource=TINY,
        instance="test",
        clock=lambda: world.now,
        resources=lambda: 1,
    )


async def test_unchanged_status_is_not_written(publisher, gateway, world):
    status = world.status()
    assert await publisher.publish(status, previous=status) is None
    assert gateway.statuses == []


async def test_counters_wait_for_the_floor_and_news_does_not(publisher, gateway, world, reported):
    def moved(count):
        pair = reported.pair(world.prefill, world.decode, success=world.now)
        row = reported.row("kv", pair, transfers=count)
        world.tell(reported.report(world.decode, rows=[row]))
        return world.status()

    first = moved(1)
    await publisher.publish(first, previous=world.deployment and type(first)())
    world.now += 0.5
    second = moved(2)
    assert await publisher.publish(second, previous=first) == pytest.approx(1.5)
    assert len(gateway.statuses) == 1
    world.now += 1.5
    assert await publisher.publish(second, previous=first) is None
    assert len(gateway.statuses) == 2
    failure = reported.failure(time=world.now)
    pair = reported.pair(world.prefill, world.decode, failure=failure)
    row = reported.row("kv", pair, transfers=2, failures=1, timeouts=1)
    world.tell(reported.report(world.decode, rows=[row]))
    assert await publisher.publish(world.status(), previous=second) is None
    assert len(gateway.statuses) == 3
    assert gateway.events[-1] == "TransferTimeout"


async def test_own_write_counts_before_the_watch_shows_it(publisher, world):
    status = world.status()
    await publisher.publish(status, previous=type(status)())
    assert publisher.previous({}) == status
    world.now += 6
    assert publisher.previous({}) == type(status)()


async def test_status_read_back_is_the_status_written(publisher, world, reported):
    failure = reported.failure(time=world.now)
    pair = reported.pair(world.prefill, world.decode, failure=failure)
    world.tell(reported.report(world.decode, rows=[reported.row("kv", pair)]))
    status = world.status()
    assert publisher.previous(status_object(status, resource=TINY)) == status


async def test_status_of_a_deleted_resource_is_nobodys(publisher, gateway, world):
    gateway.status_error = ApiNotFoundError("gone", code=404)
    status = world.status()
    assert await publisher.publish(status, previous=type(status)()) is None
    assert gateway.events == []
