"""R7: a change that one role's pods alone can notice makes that role's pods anew, and no others."""

import random
from dataclasses import replace

import pytest

from disagg_operator import names
from disagg_operator.kinds import Kind

HOUR = 3600


@pytest.fixture
def make(deployment):
    """`decode` and `prefill` are values of a variable of that role; None leaves it out."""

    def make(decode=None, *, prefill=None, replicas=(2, 2), nodes=1, gpus=0, seed="0", **rollout):
        def role(count, value):
            env = [] if value is None else [{"name": "TUNE", "value": value}]
            return {"replicas": count, "env": env, "nodesPerReplica": nodes, "gpusPerNode": gpus}

        router = rollout.pop("router", "sglang")
        return deployment(
            roles={"prefill": role(replicas[0], prefill), "decode": role(replicas[1], decode)},
            engine={"args": ["--seed", seed]},
            router={"type": router},
            rollout=rollout,
        )

    return make


def of_role(cluster, role):
    return {
        name: body
        for name, body in cluster.of(Kind.POD).items()
        if body["metadata"]["labels"][names.LABEL_ROLE] == role
    }


def uids(cluster, role):
    return {name: body["metadata"]["uid"] for name, body in of_role(cluster, role).items()}


def tuned(cluster, role):
    """The value of TUNE by pod."""
    return {
        name: next(
            (
                item.get("value")
                for container in body["spec"]["containers"]
                for item in container["env"]
                if item["name"] == "TUNE"
            ),
            None,
        )
        for name, body in of_role(cluster, role).items()
    }


def is_ready(body):
    conditions = body["status"].get("conditions", ())
    return any(item == {"type": "Ready", "status": "True"} for item in conditions)


def workers(cluster, role):
    """Pods on the router's list."""
    (router,) = cluster.of(Kind.DEPLOYMENT).values()
    args = router["spec"]["template"]["spec"]["containers"][0]["args"]
    flag = f"--{role}"
    return {args[i + 1].split("//")[1].split(".")[0] for i, a in enumerate(args) if a == flag}


def serving(cluster, role):
    pods = of_role(cluster, role)
    return {name for name in workers(cluster, role) if name in pods and is_ready(pods[name])}


def walk(cluster, spec, *, check=lambda: None, rounds=60):
    """Pass after pass until nothing is left to do; the kubelet catches up after each."""
    for _ in range(rounds):
        plan = cluster.decide(spec)
        if not plan.intents:
            return plan
        cluster.carry_out(plan)
        check()
        cluster.settle()
        check()
    raise AssertionError("no end")


@pytest.mark.parametrize("router", ["sglang", "none"])
def test_the_other_role_keeps_its_pods_and_the_revision_stays(cluster, make, revision, router):
    old, new = make(router=router), make("1", router=router)
    assert revision(old) == revision(new)
    cluster.converge(old)
    prefills, decodes = uids(cluster, "prefill"), uids(cluster, "decode")
    walk(cluster, new)
    assert uids(cluster, "prefill") == prefills
    assert uids(cluster, "decode").keys() == decodes.keys(), "no further group is left"
    assert not set(uids(cluster, "decode").values()) & set(decodes.values())
    assert set(tuned(cluster, "decode").values()) == {"1"}


@pytest.mark.parametrize(
    ("rollout", "floor", "ceiling"),
    [({}, 3, 4), ({"maxUnavailable": 1}, 2, 4), ({"strategy": "Recreate"}, 2, 3)],
)
def test_capacity_stays_within_the_bounds_of_a_rollout(cluster, make, rollout, floor, ceiling):
    cluster.converge(make(replicas=(1, 3), **rollout))

    def check():
        assert len(of_role(cluster, "decode")) <= ceiling
        assert len(serving(cluster, "decode")) >= floor

    walk(cluster, make("1", replicas=(1, 3), **rollout), check=check)
    assert set(tuned(cluster, "decode").values()) == {"1"}


def test_a_pod_goes_only_when_no_router_sends_to_it(cluster, make):
    cluster.converge(make())
    spec = make("1")
    for _ in range(60):
        plan = cluster.decide(spec)
        going = [i.name for i in plan.intents if getattr(i, "kind", None) is Kind.POD
                 and type(i).__name__ == "Delete"]  # fmt: skip
        assert not set(going) & workers(cluster, "decode")
        cluster.carry_out(plan)
        cluster.settle()
        if not plan.intents:
            break
    assert set(tuned(cluster, "decode").values()) == {"1"}


def test_the_old_pods_stay_until_the_further_group_is_ready(cluster, make):
    cluster.converge(make())
    before = uids(cluster, "decode")
    spec = make("1")
    cluster.carry_out(cluster.decide(spec))
    further = [name for name in uids(cluster, "decode") if name not in before]
    assert [name.rpartition("-")[0].rpartition("-")[2] for name in further] == ["1000"]
    assert cluster.decide(spec).intents == ()
    assert workers(cluster, "decode") == set(before)


def test_pods_of_a_broken_template_give_way_at_once(cluster, make, pod_statuses):
    cluster.converge(make())
    bad = make("bad")
    for body in of_role(cluster, "decode").values():
        body["status"] = pod_statuses["running"](body, ready=False)
    plan = cluster.decide(bad)
    gone = {i.name for i in plan.intents if i.reason == "the template of decode changed"}
    assert gone == set(uids(cluster, "decode"))


def test_a_template_that_never_comes_up_stops_at_the_deadline(cluster, make):
    cluster.converge(make())
    before = uids(cluster, "decode")
    bad = make("bad", progressDeadline="10m")
    cluster.carry_out(cluster.decide(bad))
    cluster.now += HOUR
    plan = cluster.decide(bad)
    assert plan.progress.stalled
    assert plan.intents == ()
    assert before.items() <= uids(cluster, "decode").items()
    walk(cluster, make("good", progressDeadline="10m"))
    assert set(tuned(cluster, "decode").values()) == {"good"}


def test_going_back_midway_makes_only_the_new_ones_anew(cluster, make):
    cluster.converge(make(replicas=(1, 3)))
    before = uids(cluster, "decode")
    for _ in range(5):
        cluster.carry_out(cluster.decide(make("1", replicas=(1, 3))))
        cluster.settle()
    walk(cluster, make(replicas=(1, 3)))
    after = uids(cluster, "decode")
    assert set(tuned(cluster, "decode").values()) == {None}
    assert after.keys() == before.keys()
    assert set(after.values()) & set(before.values()), "not all had been replaced"


def test_both_roles_at_once_and_groups_of_several_pods(cluster, make):
    spec = {"nodes": 2, "replicas": (2, 2), "router": "none"}
    cluster.converge(make(**spec))
    walk(cluster, make("1", prefill="2", **spec))
    assert set(tuned(cluster, "decode").values()) == {"1"}
    assert set(tuned(cluster, "prefill").values()) == {"2"}
    assert len(of_role(cluster, "decode")) == 4


def test_a_group_of_two_templates_is_made_anew_as_one(cluster, make):
    spec = {"nodes": 2, "replicas": (1, 1), "router": "none"}
    cluster.converge(make("1", **spec))
    pod = min(of_role(cluster, "decode"))
    cluster.objects[Kind.POD, pod]["metadata"]["labels"][names.LABEL_TEMPLATE] = "other"
    before = set(uids(cluster, "decode").values())
    walk(cluster, make("1", **spec))
    assert not before & set(uids(cluster, "decode").values())


def test_it_waits_for_another_revision_to_be_over(cluster, make, revision):
    cluster.converge(make())
    second = make(seed="1")
    for _ in range(2):
        cluster.carry_out(cluster.decide(second))
        cluster.settle()
    third = make("1", seed="1")
    assert revision(third) == revision(second)
    plan = cluster.decide(third)
    assert not any(one.surge or one.leaving for one in plan.refreshes.values())
    walk(cluster, third)
    assert set(tuned(cluster, "decode").values()) == {"1"}


def test_replicas_that_a_smaller_number_leaves_over_do_not_stay_for_a_broken_one(
    cluster, make, pod_statuses
):
    cluster.converge(make(replicas=(1, 3)))
    broken = min(of_role(cluster, "decode").items())[1]
    broken["status"] = pod_statuses["running"](broken, ready=False)
    plan = cluster.decide(make(replicas=(1, 2)))
    cluster.carry_out(plan)
    for body in cluster.of(Kind.DEPLOYMENT).values():
        body["status"] = {**body["status"], "observedGeneration": body["metadata"]["generation"]}
    cluster.carry_out(cluster.decide(make(replicas=(1, 2))))
    assert len(of_role(cluster, "decode")) == 2


def test_the_status_counts_what_is_new_and_says_what_it_waits_for(world, deployment):
    changed = {"roles": {"decode": {"env": [{"name": "TUNE", "value": "1"}]}}}
    world.deployment = deployment(model={"stateTypes": ["kv", "mamba"]}, **changed)
    world.cluster.carry_out(world.cluster.decide(world.deployment))
    told = world.status()
    (decode,) = (role for role in told.roles if role.name == "decode")
    assert (decode.desired, decode.updated) == (1, 0)
    assert (told.rollout.step, told.rollout.steps) == (1, 3), "prefill's, of one more"
    ready = world.condition(names.READY)
    assert ready.status == "False"
    assert ready.message.startswith("0 of 2 decode groups are made from the newest template; pod ")
    assert "decode" in ready.message
    assert "-1000-0" in ready.message


@pytest.mark.parametrize("failing", [False, True])
def test_any_walk_of_edits_keeps_the_bounds_and_ends_new(new_cluster, make, failing):
    for seed in range(40):
        chance, cluster = random.Random(seed), new_cluster()
        replicas, value = (1, 3), None
        cluster.converge(make(value, replicas=replicas))
        prefill = uids(cluster, "prefill")
        for _ in range(60):
            if chance.random() < 0.1:
                value = chance.choice([None, "1", "2", "3"])
            if failing and chance.random() < 0.05:
                replicas = (1, chance.randint(1, 4))
            plan = cluster.decide(make(value, replicas=replicas, progressDeadline="24h"))
            killed_after = chance.randint(0, 2 * len(plan.intents))
            cluster.carry_out(replace(plan, stages=(plan.intents[:killed_after],)))
            if chance.random() < 0.7:
                cluster.settle()
            pods = of_role(cluster, "decode")
            if failing and pods and chance.random() < 0.03:
                pods[chance.choice(sorted(pods))]["status"]["phase"] = "Failed"
            assert len(pods) <= 4 + 1, seed
            assert failing or len(serving(cluster, "decode")) >= 3, seed
        cluster.settle()
        cluster.now += HOUR  # restarts of failed groups are due
        walk(cluster, make(value, replicas=replicas, progressDeadline="24h"))
        assert set(tuned(cluster, "decode").values()) == {value}, seed
        assert len(of_role(cluster, "decode")) == replicas[1], seed
        assert uids(cluster, "prefill") == prefill, seed
