"""Roles that are scaled from outside, in the planner."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator import names, render
from disagg_operator.intents import CreateScaler, Delete, Tell
from disagg_operator.kinds import Kind

EXTERNAL = {"replicas": 2, "scaling": {"mode": "External"}}
STATIC = {"replicas": 1}
CUSTOM = {"type": "custom", "image": "engine:2"}
SCALER = (Kind.SCALER, "tiny-decode")


def roles(decode, *, prefill=STATIC):
    return {"roles": {"prefill": prefill, "decode": decode}}


def scale(cluster, replicas):
    """As an autoscaler does, through the scale subresource."""
    scaler = cluster.objects[SCALER]
    scaler["spec"]["replicas"] = replicas
    scaler["metadata"]["generation"] = scaler["metadata"].get("generation", 1) + 1


def of_scalers(plan):
    return [i for i in plan.intents if isinstance(i, CreateScaler | Tell)]


def test_a_role_of_its_own_number_has_no_scaler(cluster, deployment):
    cluster.converge(deployment(**roles(STATIC)))
    assert not cluster.of(Kind.SCALER)


def test_a_scaler_begins_with_the_number_of_the_role(cluster, deployment, pods_of):
    cluster.converge(deployment(**roles(EXTERNAL)))
    scaler = cluster.objects[SCALER]
    assert scaler["spec"] == {"replicas": 2}
    assert scaler["status"]["replicas"] == len(pods_of(cluster, "decode")) == 2
    assert [owner["kind"] for owner in scaler["metadata"]["ownerReferences"]] == [names.KIND]


def test_the_scaler_says_how_many_groups_there_are(cluster, deployment, pods_of):
    wanted = deployment(**roles(EXTERNAL))
    cluster.converge(wanted)
    for number in (4, 1):
        scale(cluster, number)
        cluster.converge(wanted)
        assert len(pods_of(cluster, "decode")) == number
        told = cluster.objects[SCALER]["status"]
        assert told["replicas"] == number
        assert told["observedGeneration"] == cluster.objects[SCALER]["metadata"]["generation"]
    assert len(pods_of(cluster, "prefill")) == 1


def test_the_number_in_the_spec_is_left_alone_from_then_on(cluster, deployment, pods_of):
    cluster.converge(deployment(**roles(EXTERNAL)))
    scale(cluster, 3)
    cluster.converge(deployment(**roles({**EXTERNAL, "replicas": 7})))
    assert len(pods_of(cluster, "decode")) == 3


def test_who_scales_is_no_part_of_the_revision(deployment, revision):
    assert revision(deployment(**roles(STATIC))) == revision(deployment(**roles(EXTERNAL)))


def test_the_number_counts_again_where_nobody_scales_any_more(cluster, deployment, pods_of):
    cluster.converge(deployment(**roles(EXTERNAL)))
    cluster.converge(deployment(**roles(STATIC)))
    assert SCALER not in cluster.objects
    assert len(pods_of(cluster, "decode")) == 1


def test_the_router_of_a_scaled_role_has_all_its_workers(cluster, deployment):
    wanted = deployment(**roles(EXTERNAL))
    cluster.converge(wanted)
    scale(cluster, 4)
    cluster.converge(wanted)
    (router,) = cluster.of(Kind.DEPLOYMENT).values()
    (container,) = router["spec"]["template"]["spec"]["containers"]
    assert container["args"].count("--decode") == 4


def test_the_selector_finds_one_pod_of_each_group(cluster, deployment):
    wanted = deployment(**roles({**EXTERNAL, "nodesPerReplica": 2}), engine=CUSTOM)
    cluster.converge(wanted)
    selector = dict(
        part.split("=") for part in cluster.objects[SCALER]["status"]["selector"].split(",")
    )
    found = [
        name
        for name, body in cluster.of(Kind.POD).items()
        if selector.items() <= body["metadata"]["labels"].items()
    ]
    assert len(found) == cluster.objects[SCALER]["status"]["replicas"] == 2
    assert all(name.endswith("-0") for name in found)


def test_a_scaler_of_a_deleted_resource_of_that_name_says_nothing(cluster, deployment):
    wanted = deployment(**roles(EXTERNAL))
    cluster.converge(wanted)
    cluster.objects[SCALER]["metadata"]["ownerReferences"][0]["uid"] = "another"
    cluster.objects[SCALER]["spec"]["replicas"] = 9
    assert not cluster.observed(wanted).scalers


@given(numbers=st.lists(st.integers(1, 5), min_size=1, max_size=5), image=st.booleans())
def test_whatever_is_asked_for_in_a_rollout_is_what_comes_of_it(
    numbers, image, new_cluster, deployment
):
    """R6: scaled in the midst of a rollout, the number asked for last is planned for."""
    cluster = new_cluster()
    wanted = deployment(**roles(EXTERNAL))
    cluster.converge(wanted)
    if image:
        wanted = deployment(**roles(EXTERNAL), engine={"image": "engine:2"})
    for number in numbers:
        scale(cluster, number)
        cluster.carry_out(cluster.decide(wanted))
        cluster.settle()
    cluster.converge(wanted)
    assert cluster.objects[SCALER]["spec"] == {"replicas": numbers[-1]}
    update = render.revision(wanted, images=cluster.images)
    pods = cluster.observed(wanted).role_pods("decode", revision=update)
    assert {pod.group for pod in pods} == set(range(numbers[-1]))
    assert not of_scalers(cluster.decide(wanted))


def test_a_steady_scaler_is_not_written(cluster, deployment):
    wanted = deployment(**roles(EXTERNAL))
    cluster.converge(wanted)
    assert not cluster.decide(wanted).intents
    cluster.objects[SCALER]["status"] = {}
    (told,) = cluster.decide(wanted).intents
    assert isinstance(told, Tell)
    assert told.body["metadata"]["uid"] == cluster.objects[SCALER]["metadata"]["uid"]


def test_a_paused_resource_keeps_its_scaler(cluster, deployment):
    cluster.converge(deployment(**roles(EXTERNAL)))
    plan = cluster.decide(deployment(**roles(STATIC), paused=True))
    assert not any(isinstance(intent, Delete) for intent in plan.intents)
