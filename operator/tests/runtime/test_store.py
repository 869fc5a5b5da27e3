"""What the loops look at is what the server has, whatever the watches told in between."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator import names
from disagg_operator.kinds import Kind, ObjectReference
from disagg_operator.sight import Sight
from disagg_operator.store import Store

TINY, OTHER = ("ns", "tiny"), ("elsewhere", "tiny")
REFERENCE = ObjectReference(namespace="ns", name="tiny", uid="r1")


def budget(uid, owner=TINY, *, spec=0, version="1"):
    namespace, deployment = owner
    labels = {names.LABEL_DEPLOYMENT: deployment} if deployment else {}
    return {
        "metadata": {
            "name": f"budget-{uid}",
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": version,
            "labels": labels,
        },
        "spec": {"minAvailable": spec},
    }


def resource(uid="r1", **metadata):
    return {"metadata": {"name": "tiny", "namespace": "ns", "uid": uid, **metadata}, "spec": {}}


class Desk:
    def __init__(self):
        self.woken = []
        self.store = Store(wake=self.woken.append)
        self.is_complete = True
        self.sight = Sight(store=self.store, resource=REFERENCE, complete=lambda: self.is_complete)

    def put(self, *args, **kwargs):
        self.store.put(Kind.DISRUPTION_BUDGET, budget(*args, **kwargs))

    def told(self, owner=TINY):
        return {
            record.uid: record.spec.value["minAvailable"]
            for record in self.store.of(owner, Kind.DISRUPTION_BUDGET)
        }


owners = st.sampled_from([TINY, OTHER, ("ns", "second"), ("ns", None)])
objects = st.dictionaries(st.sampled_from("abcdef"), st.tuples(owners, st.integers(0, 2)))


@given(st.lists(st.tuples(st.sampled_from(["watched", "listed", "listed in ns"]), objects)))
def test_the_store_has_what_the_server_has_and_wakes_whom_it_concerns(rounds):
    desk, server = Desk(), {}
    for how, now in rounds:
        if how == "listed in ns":
            now = {uid: item for uid, item in now.items() if item[0][0] == "ns"}  # noqa: PLW2901
            now |= {uid: item for uid, item in server.items() if item[0][0] != "ns"}
        before = {owner: desk.told(owner) for owner in (TINY, OTHER)}
        desk.woken.clear()
        for uid, (owner, spec) in now.items():
            if how != "listed in ns" or owner[0] == "ns":
                desk.put(uid, owner, spec=spec)
        if how == "watched":
            for uid in server.keys() - now.keys():
                desk.store.drop(Kind.DISRUPTION_BUDGET, uid)
        else:
            namespace = "ns" if how == "listed in ns" else None
            uids = [uid for uid, item in now.items() if namespace in {None, item[0][0]}]
            desk.store.keep(Kind.DISRUPTION_BUDGET, uids, namespace=namespace)
        server = now
        for owner in (TINY, OTHER):
            expected = {uid: spec for uid, (whose, spec) in server.items() if whose == owner}
            assert desk.told(owner) == expected
            assert (owner in desk.woken) == (expected != before[owner])


def test_an_object_that_says_what_it_said_before_wakes_nobody():
    desk = Desk()
    desk.put("a")
    assert desk.woken == [TINY]
    desk.put("a", version="2")
    assert desk.woken == [TINY]


def test_there_is_nothing_to_look_at_before_everything_was_listed():
    desk = Desk()
    assert desk.sight.snapshot() is None
    desk.store.put(Kind.RESOURCE, resource())
    desk.is_complete = False
    assert desk.sight.snapshot() is None
    desk.is_complete = True
    desk.put("a", spec=2)
    snapshot = desk.sight.snapshot()
    assert snapshot.body["metadata"]["uid"] == "r1"
    assert [guard.uid for guard in snapshot.guards] == ["a"]


def test_a_resource_is_lost_once_it_was_there_and_is_not():
    desk = Desk()
    assert not desk.sight.lost(), "kopf's watch may be the faster one"
    desk.store.put(Kind.RESOURCE, resource())
    assert not desk.sight.lost()
    desk.store.put(Kind.RESOURCE, resource(deletionTimestamp="2026-11-29T00:00:00Z"))
    assert desk.sight.lost()
    desk.store.drop(Kind.RESOURCE, "r1")
    assert desk.sight.lost()


def test_another_resource_of_the_name_is_another_ones_business():
    desk = Desk()
    desk.store.put(Kind.RESOURCE, resource())
    desk.sight.lost()
    desk.store.put(Kind.RESOURCE, resource("r2"))
    assert desk.sight.snapshot().body["metadata"]["uid"] == "r1"
    desk.store.drop(Kind.RESOURCE, "r1")
    assert desk.sight.snapshot() is None
    assert desk.sight.lost()
