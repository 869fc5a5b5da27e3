"""What fails the liveness probe, by name, and what does not."""

from types import SimpleNamespace

import pytest

from disagg_operator import names
from disagg_operator.health import LEFT_ALONE_AFTER_S, STUCK_AFTER_S, Health
from disagg_operator.kinds import Kind, ObjectReference
from disagg_operator.runtime import Wakeups
from disagg_operator.store import Store

TINY = ObjectReference(namespace="default", name="tiny", uid="u")
DELETED = {"deletionTimestamp": "2026-11-29T00:00:00Z"}


class Desk:
    def __init__(self):
        self.now = 1000.0
        self.runtime = SimpleNamespace(
            clock=lambda: self.now,
            running={},
            wakeups=Wakeups(),
            store=Store(wake=lambda owner: None),
            watches=SimpleNamespace(stuck=[], refusals=[]),
        )
        self.health = Health(self.runtime)

    def resource(self, **metadata):
        body = {"metadata": {"namespace": "default", "name": "tiny", "uid": "u", **metadata}}
        self.runtime.store.put(Kind.RESOURCE, body)

    def after(self, seconds):
        assert self.health.complaints() == []
        self.now += seconds
        return self.health.complaints()


@pytest.fixture
def desk():
    return Desk()


def test_a_pass_that_never_ends(desk):
    desk.runtime.running[TINY] = desk.now
    assert desk.after(STUCK_AFTER_S) == []
    assert desk.after(1) == ["passes that do not end: default/tiny"]


def test_a_watch_that_is_stuck(desk):
    desk.runtime.watches.stuck = ["pods", "services"]
    assert desk.health.complaints() == ["watches that bring nothing: pods, services"]


def test_what_the_server_refuses_is_a_matter_of_readiness_alone(desk):
    desk.runtime.watches.refusals = ["list pods of team-b: forbidden"]
    assert desk.health.complaints() == []
    assert desk.health.shortcomings() == ["not let in: list pods of team-b: forbidden"]
    desk.runtime.watches.stuck = ["services"]
    assert len(desk.health.shortcomings()) == 2


def test_a_resource_that_kopf_has_not_brought(desk):
    desk.resource()
    assert desk.after(LEFT_ALONE_AFTER_S) == []
    assert desk.after(1) == ["resources that no loop looks after: default/tiny"]
    desk.runtime.wakeups.register(TINY.owner)
    assert desk.health.complaints() == []


def test_a_deletion_that_kopf_has_not_brought(desk):
    desk.resource(**DELETED, finalizers=[names.FINALIZER])
    assert desk.after(LEFT_ALONE_AFTER_S + 1) == [
        "resources that no loop looks after: default/tiny"
    ]


def test_a_resource_that_somebody_elses_finalizer_holds_is_no_complaint(desk):
    desk.resource(**DELETED, finalizers=["somebody.dev/else"])
    assert desk.after(LEFT_ALONE_AFTER_S + 1) == []
