from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_operator import names
from disagg_operator.drift import holds
from disagg_operator.intents import Apply, CreatePod, Delete, WriteKeys
from disagg_operator.kinds import Kind
from disagg_operator.step import group_ready
from disagg_operator.timestamps import timestamp_s


def kinds_of(plan):
    return [type(intent) for intent in plan.intents]


def test_new_resource_gets_services_then_key_then_pods_and_router(cluster, deployment):
    plan = cluster.decide(deployment())
    services, key, workloads, client_service, guards = plan.stages
    assert [intent.kind for intent in services] == [Kind.SERVICE, Kind.SERVICE]
    assert [type(intent) for intent in key] == [WriteKeys]
    assert {type(intent) for intent in workloads} == {CreatePod, Apply}
    assert [intent.name for intent in client_service] == ["tiny"]
    assert [intent.name for intent in guards] == [
        "tiny-prefill",
        "tiny-decode",
        "tiny-pods",
        "tiny-router",
    ]


def test_converged_resource_has_an_empty_plan(cluster, deployment):
    cluster.converge(deployment())
    assert cluster.decide(deployment()).stages == ()


def test_paused_resource_has_an_empty_plan(cluster, deployment):
    assert cluster.decide(deployment(paused=True)).stages == ()


def test_missing_pod_is_created_again_under_its_name(cluster, deployment, pods_of):
    cluster.converge(deployment())
    [name] = pods_of(cluster, "prefill")
    del cluster.objects[Kind.POD, name]
    plan = cluster.decide(deployment())
    assert [(type(i), i.name) for i in plan.intents] == [(CreatePod, name)]


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_ended_pod_is_deleted_before_it_is_created_again(cluster, deployment, pods_of, phase):
    cluster.converge(deployment())
    [name] = pods_of(cluster, "decode")
    cluster.objects[Kind.POD, name]["status"]["phase"] = phase
    plan = cluster.decide(deployment())
    assert [(type(i), i.name) for i in plan.intents] == [(Delete, name)]
    cluster.converge(deployment())
    assert pods_of(cluster, "decode") == [name]


def test_terminating_pod_is_waited_for(cluster, deployment, pods_of):
    cluster.converge(deployment())
    [name] = pods_of(cluster, "decode")
    cluster.objects[Kind.POD, name]["metadata"]["deletionTimestamp"] = timestamp_s(cluster.now)
    assert cluster.decide(deployment()).intents == ()


def test_scale_up_changes_no_pod_that_is_there(cluster, deployment, pods_of):
    cluster.converge(deployment())
    before = pods_of(cluster, "prefill")
    cluster.converge(deployment(roles={"prefill": {"replicas": 3}}))
    after = pods_of(cluster, "prefill")
    assert len(after) == 3
    assert set(before) < set(after)


def test_scale_down_deletes_the_highest_groups_once_the_router_has_let_go(
    cluster, deployment, pods_of
):
    cluster.converge(deployment(roles={"decode": {"replicas": 3}}))
    smaller = deployment(roles={"decode": {"replicas": 1}})
    first = cluster.decide(smaller)
    assert [intent.kind for intent in first.intents] == [Kind.DEPLOYMENT, Kind.DISRUPTION_BUDGET]
    assert kinds_of(first) == [Apply, Apply]
    cluster.carry_out(first)
    assert cluster.decide(smaller).intents == (), "the router has not rolled out yet"
    cluster.settle()
    cluster.converge(smaller)
    assert [name[-4:] for name in pods_of(cluster, "decode")] == ["-0-0"]


def test_router_that_never_came_up_holds_no_scale_down_back(cluster, deployment, pods_of):
    cluster.converge(deployment(roles={"decode": {"replicas": 2}}))
    for body in cluster.of(Kind.DEPLOYMENT).values():
        body["status"] = {}
    plan = cluster.decide(deployment())
    assert [i.name[-4:] for i in plan.intents if isinstance(i, Delete)] == ["-1-0"]


def test_revision_given_up_half_way_goes_while_the_serving_one_stays(cluster, deployment, revision):
    first = deployment()
    second, third = (deployment(engine={"args": ["--seed", seed]}) for seed in ("1", "2"))
    cluster.converge(first)
    cluster.carry_out(cluster.decide(second))
    plan = cluster.decide(third)
    gone = {i.name for i in plan.intents if isinstance(i, Delete)}
    assert gone
    assert all(revision(second) in name for name in gone)


def test_going_back_to_the_serving_revision_only_cleans_up(cluster, deployment, revision):
    first, second = deployment(), deployment(engine={"args": ["--seed", "1"]})
    cluster.converge(first)
    cluster.carry_out(cluster.decide(second))
    cluster.converge(first)
    assert len(cluster.of(Kind.POD)) == 2
    assert all(revision(first) in name for name in cluster.of(Kind.POD))


def test_changed_field_of_a_service_is_put_back(cluster, deployment):
    cluster.converge(deployment())
    cluster.objects[Kind.SERVICE, "tiny"]["spec"]["ports"][0]["port"] = 1234
    plan = cluster.decide(deployment())
    assert [(type(i), i.name) for i in plan.intents] == [(Apply, "tiny")]


def test_field_added_by_others_is_left_alone(cluster, deployment):
    cluster.converge(deployment())
    cluster.objects[Kind.SERVICE, "tiny"]["spec"]["sessionAffinity"] = "None"
    assert cluster.decide(deployment()).intents == ()


def test_router_taken_away_takes_its_objects_with_it(cluster, deployment):
    cluster.converge(deployment())
    cluster.converge(deployment(router={"type": "none"}))
    assert cluster.of(Kind.DEPLOYMENT) == {}
    assert (Kind.SERVICE, "tiny") not in cluster.objects


def test_rollout_without_a_router_ends(cluster, deployment, revision):
    bare = {"router": {"type": "external"}}
    cluster.converge(deployment(**bare))
    new = deployment(engine={"args": ["--seed", "1"]}, **bare)
    cluster.converge(new)
    left = {
        body["metadata"]["labels"].get(names.LABEL_REVISION) for body in cluster.objects.values()
    }
    assert left - {None} == {revision(new)}


def test_keys_are_asked_for_until_the_status_tells_of_them(cluster, deployment):
    cluster.converge(deployment())
    written, cluster.keys = cluster.keys, None
    assert kinds_of(cluster.decide(deployment())) == [WriteKeys]
    cluster.keys = written
    assert cluster.decide(deployment()).intents == ()


def test_pods_of_a_deleted_resource_with_this_name_are_not_ours(cluster, deployment):
    cluster.converge(deployment())
    reborn = replace(deployment(), uid="another")
    plan = cluster.decide(reborn)
    assert sorted(type(i).__name__ for i in plan.intents if i.name.endswith("-0-0")) == [
        "CreatePod",
        "CreatePod",
    ]


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({}, {"a": ""}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [{"name": "x", "v": 1}, {"name": "y"}]}, {"a": [{"name": "x", "v": 1}]}, True),
        ({"a": [{"name": "x", "v": 2}]}, {"a": [{"name": "x", "v": 1}]}, False),
        ({"a": [{"name": "y"}]}, {"a": [{"name": "x"}]}, False),
        ({"a": "text"}, {"a": ["x"]}, False),
        ("text", {"a": 1}, False),
    ],
)
def test_what_is_wanted_is_found_among_what_is_there(live, wanted, expected):
    assert holds(live, wanted) is expected


def test_group_is_ready_only_with_every_rank(cluster, deployment, pods_of):
    wide = deployment(roles={"prefill": {"nodesPerReplica": 2}})
    cluster.converge(wide)
    pods = [p for p in cluster.observed(wide).pods.values() if p.role == "prefill"]
    assert group_ready(pods, size=2)
    assert not group_ready(pods[:1], size=2)
    assert not group_ready([pods[0], replace(pods[1], deleted_at=1.0)], size=2)


SPECS = st.fixed_dictionaries(
    {
        "roles": st.fixed_dictionaries(
            {
                "prefill": st.fixed_dictionaries({"replicas": st.integers(1, 3)}),
                "decode": st.fixed_dictionaries({"replicas": st.integers(1, 3)}),
            }
        ),
        "engine": st.fixed_dictionaries({"args": st.sampled_from([["a"], ["b"], ["c"]])}),
        "router": st.fixed_dictionaries({"type": st.sampled_from(["sglang", "sglang", "none"])}),
    }
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spec"), SPECS),
        st.tuples(st.sampled_from(["fail", "vanish", "unready", "edit"]), st.integers(0, 20)),
        st.tuples(st.sampled_from(["pass", "settle", "restart"]), st.none()),
    ),
    max_size=14,
)


def disturb(cluster, what, number):
    pods = sorted(cluster.of(Kind.POD))
    services = sorted(cluster.of(Kind.SERVICE))
    if what == "edit" and services:
        body = cluster.objects[Kind.SERVICE, services[number % len(services)]]
        body["spec"]["ports"][0]["port"] = 1
    elif what != "edit" and pods:
        key = (Kind.POD, pods[number % len(pods)])
        if what == "vanish":
            del cluster.objects[key]
        elif what == "fail":
            cluster.objects[key]["status"]["phase"] = "Failed"
        else:
            cluster.objects[key]["status"]["conditions"] = []


@settings(max_examples=80)
@given(steps=STEPS)
def test_any_history_converges_to_exactly_what_the_spec_asks_for(
    new_cluster, deployment, revision, steps
):
    cluster, current = new_cluster(), deployment()
    for what, argument in steps:
        if what == "spec":
            current = deployment(**argument)
        elif what == "settle":
            cluster.settle()
        elif what == "restart":
            cluster.keys = None
        elif what == "pass":
            plan = cluster.decide(current)
            cluster.carry_out(plan)
        else:
            disturb(cluster, what, argument)
    for _ in range(2):  # pauses of restarts are over
        cluster.now += 700
        cluster.settle()
        cluster.converge(current)
    roles, routed = current.spec.roles, current.spec.router.type == "sglang"
    assert len(cluster.of(Kind.POD)) == roles.prefill.replicas + roles.decode.replicas
    assert all(revision(current) in name for name in cluster.of(Kind.POD))
    assert len(cluster.of(Kind.SERVICE)) == (3 if routed else 2)
    assert len(cluster.of(Kind.DEPLOYMENT)) == (1 if routed else 0)
