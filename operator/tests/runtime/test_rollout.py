"""Rollouts by the rules: R1 no mixed pairs, R2 bounds, R3 skew, R4 proven before the old drains,
R5 from objects alone, R6 scaling on the way, R8 deadline, R9 rollback, R10 no-ops, R11 drain order.
"""

import random
from dataclasses import replace

import pytest

from disagg_operator import names
from disagg_operator.intents import Apply, CreatePod, Delete
from disagg_operator.kinds import Kind

HOUR = 3600


@pytest.fixture
def make(deployment):
    """A deployment of P prefill and D decode groups; `seed` makes another revision."""

    def make(prefill=2, decode=2, seed="0", *, router="sglang", **rollout):
        return deployment(
            roles={"prefill": {"replicas": prefill}, "decode": {"replicas": decode}},
            engine={"args": ["--seed", seed]},
            router={"type": router},
            rollout=rollout,
        )

    return make


def pods(cluster, role, revision):
    return sorted(
        name
        for name, body in cluster.of(Kind.POD).items()
        if body["metadata"]["labels"][names.LABEL_ROLE] == role
        and body["metadata"]["labels"][names.LABEL_REVISION] == revision
    )


def router_of(cluster, revision):
    return cluster.objects.get((Kind.DEPLOYMENT, f"tiny-router-{revision}"))


def workers(cluster, revision):
    args = router_of(cluster, revision)["spec"]["template"]["spec"]["containers"][0]["args"]
    return [part for part in args if part.startswith("http://")]


def deleted_pods(plan):
    return [i.name for i in plan.intents if isinstance(i, Delete) and i.kind is Kind.POD]


def once(cluster, spec, *, settle=True):
    plan = cluster.decide(spec)
    cluster.carry_out(plan)
    if settle:
        cluster.settle()
    return plan


def test_no_router_knows_workers_of_two_revisions(cluster, make, revision):
    old, new = make(), make(seed="1")
    cluster.converge(old)
    for _ in range(12):
        once(cluster, new)
        for one in (old, new):
            if router_of(cluster, revision(one)):
                assert all(revision(one) in url for url in workers(cluster, revision(one)))


def test_surge_bounds_what_is_added_and_the_new_router_waits_for_a_ready_pair(
    cluster, make, revision
):
    old, new = make(), make(seed="1")
    cluster.converge(old)
    first = once(cluster, new, settle=False)
    assert len([i for i in first.intents if isinstance(i, CreatePod)]) == 2
    assert deleted_pods(first) == []
    assert router_of(cluster, revision(new)) is None
    assert cluster.decide(new).intents == (), "nothing more until the pair is ready"
    cluster.settle()
    second = cluster.decide(new)
    assert [type(i) for i in second.intents] == [Apply]
    cluster.carry_out(second)
    assert router_of(cluster, revision(new))
    assert cluster.decide(new).intents == (), "the old pairs stay until the new router is ready"


def test_worker_leaves_the_old_router_before_its_pod_goes(cluster, make, revision):
    old, new = make(), make(seed="1")
    cluster.converge(old)
    once(cluster, new)
    once(cluster, new)  # the new router
    trimming = once(cluster, new, settle=False)
    assert deleted_pods(trimming) == []
    assert len(workers(cluster, revision(old))) == 2
    assert deleted_pods(cluster.decide(new)) == [], "the old router has not rolled out yet"
    cluster.settle()
    assert sorted(deleted_pods(cluster.decide(new))) == sorted(
        [pods(cluster, "prefill", revision(old))[1], pods(cluster, "decode", revision(old))[1]]
    )


def router_pod(cluster, revision, *, deleting):
    name = f"tiny-router-{revision}-x"
    labels = {
        names.LABEL_DEPLOYMENT: "tiny",
        names.LABEL_ROLE: names.ROUTER,
        names.LABEL_REVISION: revision,
    }
    metadata = {"name": name, "labels": labels}
    cluster.put(Kind.POD, name, {"metadata": metadata, "spec": {"containers": []}})
    if deleting:
        cluster.objects[Kind.POD, name]["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    return name


@pytest.mark.parametrize("deleting", [False, True])
def test_pods_of_an_ended_revision_wait_for_the_last_router_process(
    cluster, make, revision, deleting
):
    old, new = make(1, 1), make(1, 1, seed="1")
    cluster.converge(old)
    name = router_pod(cluster, revision(old), deleting=deleting)
    for _ in range(6):
        once(cluster, new)
    assert router_of(cluster, revision(old)) is None
    assert len(pods(cluster, "prefill", revision(old))) == 1
    del cluster.objects[Kind.POD, name]
    cluster.converge(new)
    assert pods(cluster, "prefill", revision(old)) == []


def test_scaled_down_worker_waits_for_the_router_process_that_knew_it(cluster, make, revision):
    cluster.converge(make(2, 2))
    small = make(1, 1)
    once(cluster, small)
    name = router_pod(cluster, revision(small), deleting=True)
    assert cluster.decide(small).intents == ()
    del cluster.objects[Kind.POD, name]
    assert len(deleted_pods(cluster.decide(small))) == 2


def test_rollout_ends_with_the_new_revision_alone(cluster, make, revision):
    cluster.converge(make(3, 1))
    new = make(3, 1, seed="1")
    cluster.converge(new, rounds=40)
    left = {
        body["metadata"]["labels"].get(names.LABEL_REVISION) for body in cluster.objects.values()
    }
    assert left - {None} == {revision(new)}
    assert cluster.decide(new).progress is None


def test_rollback_half_way_returns_to_the_old_revision(cluster, make, revision):
    old, new = make(3, 3), make(3, 3, seed="1")
    cluster.converge(old, rounds=40)
    for _ in range(5):
        once(cluster, new)
    assert pods(cluster, "decode", revision(new))
    cluster.converge(old, rounds=40)
    assert len(pods(cluster, "decode", revision(old))) == 3
    assert pods(cluster, "decode", revision(new)) == []


def test_scaling_on_the_way_is_applied_to_the_new_revision(cluster, make, revision):
    cluster.converge(make(2, 2))
    for _ in range(3):
        once(cluster, make(2, 2, seed="1"))
    grown = make(2, 4, seed="1")
    cluster.converge(grown, rounds=40)
    assert len(pods(cluster, "decode", revision(grown))) == 4
    assert len(cluster.of(Kind.POD)) == 6


def test_revision_that_never_gets_ready_stops_at_its_deadline_and_the_old_one_serves_on(
    cluster, make, revision
):
    old, new = make(3, 3), make(3, 3, seed="1", maxSurge=1, progressDeadline="10m")
    cluster.converge(old, rounds=40)
    once(cluster, new, settle=False)
    plan = cluster.decide(new)
    assert plan.wake_at == cluster.now + 600
    cluster.now += 600
    stalled = once(cluster, new, settle=False)
    assert stalled.progress.stalled
    assert stalled.intents == ()
    assert len(pods(cluster, "decode", revision(old))) == 3


def test_step_that_is_done_starts_the_deadline_anew(cluster, make):
    cluster.converge(make(3, 3), rounds=40)
    new = make(3, 3, seed="1")
    once(cluster, new)
    cluster.now += HOUR - 1
    assert not cluster.decide(new).progress.stalled
    cluster.carry_out(cluster.decide(new))
    cluster.now += HOUR - 1
    assert not cluster.decide(new).progress.stalled


def test_pod_that_breaks_after_the_rollout_is_no_rollout(cluster, make):
    spec = make()
    cluster.converge(spec)
    del cluster.objects[Kind.POD, min(cluster.of(Kind.POD))]
    assert cluster.decide(spec).progress is None


def test_first_revision_that_does_not_come_up_is_told_after_the_deadline(cluster, make):
    spec = make()
    once(cluster, spec, settle=False)
    assert cluster.decide(spec).progress.stalled is False
    cluster.now += HOUR
    assert cluster.decide(spec).progress.stalled


def test_recreate_takes_the_old_down_before_it_makes_the_new(cluster, make, revision):
    old, new = make(strategy="Recreate"), make(seed="1", strategy="Recreate")
    cluster.converge(old)
    while any(revision(old) in name for name in cluster.of(Kind.POD)):
        plan = once(cluster, new)
        assert not [i for i in plan.intents if isinstance(i, CreatePod)]
    cluster.converge(new)
    assert len(cluster.of(Kind.POD)) == 4


def test_changed_bounds_and_order_of_labels_restart_nothing(cluster, make):
    cluster.converge(make())
    assert cluster.decide(make(maxSurge="50%")).intents == ()


def test_condition_and_status_tell_of_the_rollout(world, deployment):
    world.deployment = deployment(
        model={"stateTypes": ["kv", "mamba"]}, engine={"args": ["x"]}, generation=2
    )
    world.cluster.carry_out(world.cluster.decide(world.deployment))
    status = world.status()
    assert (status.rollout.step, status.rollout.steps) == (0, 1)
    assert world.condition(names.PROGRESSING).status == "True"
    world.cluster.now = world.now = world.now + HOUR
    condition = world.condition(names.PROGRESSING)
    assert (condition.status, condition.reason) == ("False", "ProgressDeadlineExceeded")
    assert "apply the old one again" in condition.message


def capacity(cluster, spec):
    """Groups that serve, by role: counted here in another way than the planner does."""
    observed = cluster.observed(spec)
    total = dict.fromkeys(names.ROLES, 0)
    for revision in {pod.revision for pod in observed.pods.values()}:
        ready = {
            role: sum(
                pod.ready and not pod.deleting
                for pod in observed.role_pods(role, revision=revision)
            )
            for role in names.ROLES
        }
        router = observed.routers.get(f"tiny-router-{revision}")
        if all(ready.values()) and router is not None and router.ready:
            total = {role: total[role] + ready[role] for role in names.ROLES}
    return total


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_through_random_specs_failures_and_restarts(new_cluster, make, seed):
    cluster, pick = new_cluster(), random.Random(seed)
    surge, unavailable = pick.choice([(1, 0), (2, 1), ("50%", "25%"), (1, 2)])
    bounds = {"maxSurge": surge, "maxUnavailable": unavailable}
    sizes = (pick.randint(1, 4), pick.randint(1, 4))
    spec = make(*sizes, **bounds)
    cluster.converge(spec, rounds=40)
    for number in range(400):
        if number % 60 == 0:
            spec = make(*sizes, seed=str(pick.randint(0, 2)), **bounds)
        if pick.random() < 0.5:
            cluster.settle()
        if pick.random() < 0.05:
            cluster.keys, cluster.restarts, cluster.progress = None, {}, None
        before = capacity(cluster, spec)
        plan = cluster.decide(spec)
        present = dict.fromkeys(names.ROLES, 0)
        for body in cluster.of(Kind.POD).values():
            present[body["metadata"]["labels"][names.LABEL_ROLE]] += 1
        cluster.carry_out(plan)
        after = capacity(cluster, spec)
        for role, wanted in zip(names.ROLES, sizes, strict=True):
            rollout = spec.spec.rollout
            spare = amount(rollout.max_unavailable, wanted, up=False)
            extra = max(1, amount(rollout.max_surge, wanted, up=True))
            assert after[role] >= min(before[role], wanted - spare)
            now = sum(
                body["metadata"]["labels"][names.LABEL_ROLE] == role
                for body in cluster.of(Kind.POD).values()
            )
            assert now <= max(present[role], wanted + extra)
    cluster.settle()
    cluster.converge(spec, rounds=60)
    assert capacity(cluster, spec) == dict(zip(names.ROLES, sizes, strict=True))


def amount(value, whole, *, up):
    if isinstance(value, int):
        return value
    share = int(value[:-1]) * whole / 100
    return int(-(-share // 1)) if up else int(share)


def test_paused_rollout_stands_still(cluster, make):
    cluster.converge(make())
    new = make(seed="1")
    once(cluster, new)
    held = replace(new, spec=new.spec.model_copy(update={"paused": True}))
    assert cluster.decide(held).intents == ()
