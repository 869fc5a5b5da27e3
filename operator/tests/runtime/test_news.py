from uuid import UUID

import pytest

from disagg_operator.changes import Change, change_of, counter_floor_s
from disagg_operator.events import EventGate, event_object, intent_news, status_news
from disagg_operator.intents import Delete
from disagg_operator.kinds import Kind, ObjectReference


def timeout(world, reported, *, time, state_type="mamba", room=7, stage="notify", success=None):
    failure = reported.failure(time=time, room=room, stage=stage)
    pair = reported.pair(world.prefill, world.decode, success=success, failure=failure)
    row = reported.row(state_type, pair, timeouts=1, failures=1)
    world.tell(reported.report(world.decode, rows=[row]))


def told(before, after):
    return [(item.type, item.reason) for item in status_news(before, after)]


@pytest.fixture
def calm(world):
    return world.status()


def test_same_status_is_no_news(calm, world):
    assert told(calm, world.status()) == []
    assert change_of(calm, world.status()) is Change.NONE


def test_first_ready_status_tells_that_the_revision_serves(world):
    before = world.previous
    assert told(before, world.status()) == [("Normal", "RevisionServing")]


def test_revision_that_serves_is_told_although_its_building_met_an_error(world):
    before = world.status().model_copy(update={"phase": "Degraded", "conditions": ()})
    assert told(before, world.status()) == [("Normal", "RevisionServing")]


def test_timeout_is_a_warning_that_names_it_all(calm, world, reported):
    timeout(world, reported, time=world.now)
    [item] = status_news(calm, world.status())
    assert (item.type, item.reason) == ("Warning", "TransferTimeout")
    for word in ("mamba", world.prefill, world.decode, "notify"):
        assert word in item.note


def test_recovery_is_told(calm, world, reported):
    timeout(world, reported, time=world.now)
    failed = world.status()
    timeout(world, reported, time=world.now, success=world.now + 1)
    assert told(failed, world.status()) == [("Normal", "TransferRecovered")]


def test_restarted_operator_tells_no_old_failure_again(calm, world, reported):
    timeout(world, reported, time=world.now)
    failed = world.status()
    world.tally = type(world.tally)()
    assert told(failed, world.status()) == []


def test_new_revision_is_told(calm, world, deployment):
    world.deployment = deployment(engine={"args": ["x"]})
    assert ("Normal", "RevisionStarted") in told(calm, world.status())


def test_broken_image_is_told_once_and_not_again_for_the_summary(calm, world, pod_statuses):
    pod = world.pod(world.prefill)
    pod["status"]["conditions"] = []
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no"}}
    pod["status"]["containerStatuses"] = [
        pod_statuses["container"]("engine", ready=False, state=waiting)
    ]
    assert told(calm, world.status()) == [("Warning", "ImagePullFailed")]


def test_replaced_pod_is_told_and_scaled_down_pods_are_not():
    gone = {"kind": Kind.POD, "name": "p", "uid": "u"}
    ended = Delete(**gone, reason="phase Failed", ended=True)
    surplus = Delete(**gone, reason="decode has 1 replicas")
    assert [item.reason for item in intent_news([ended, surplus])] == ["PodRecreated"]


def test_gate_admits_one_per_minute_unless_the_identity_changes(calm, world, reported):
    gate, before, found = EventGate(), calm, []
    for second, stage in [(0, "notify"), (1, "notify"), (2, "wire"), (61, "wire"), (63, "wire")]:
        timeout(world, reported, time=world.now + second, stage=stage)
        after = world.status()
        found += [gate.admits(item, now=float(second)) for item in status_news(before, after)]
        before = after
    assert found == [True, False, True, False, True]


def test_traffic_alone_may_wait_and_failures_may_not(calm, world, reported):
    pair = reported.pair(world.prefill, world.decode, success=world.now)
    world.tell(reported.report(world.decode, rows=[reported.row("kv", pair)]))
    healthy = world.status()
    assert change_of(calm, healthy) is Change.NEWS, "the condition changed"
    pair = reported.pair(world.prefill, world.decode, success=world.now + 5)
    moved = reported.row("kv", pair, transfers=5)
    world.tell(reported.report(world.decode, rows=[moved]))
    busy = world.status()
    assert change_of(healthy, busy) is Change.COUNTERS
    timeout(world, reported, time=world.now + 6)
    assert change_of(busy, world.status()) is Change.NEWS


def test_storm_of_one_failure_is_counted_and_its_first_is_news(calm, world, reported):
    timeout(world, reported, time=world.now)
    first = world.status()
    assert change_of(calm, first) is Change.NEWS
    timeout(world, reported, time=world.now + 1, room=8)
    second = world.status()
    assert second != first
    assert change_of(first, second) is Change.COUNTERS


def test_floor_grows_with_the_fleet():
    assert counter_floor_s(1) == 2.0
    assert counter_floor_s(1000) == 20.0


def test_event_regards_the_resource(calm, world, reported):
    timeout(world, reported, time=world.now)
    [item] = status_news(calm, world.status())
    resource = ObjectReference(namespace="default", name="tiny", uid="u")
    body = event_object(item, resource=resource, instance="op-0", unique=UUID(int=1), now=1.5)
    assert body["regarding"]["uid"] == "u"
    assert body["eventTime"] == "1970-01-01T00:00:01.500000Z"
    assert body["reportingInstance"] == "op-0"
