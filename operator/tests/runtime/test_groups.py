"""Groups that break: replaced as one, with pauses and a ceiling, also on dead nodes."""

import random
from dataclasses import replace

import pytest

from disagg_operator import names
from disagg_operator.groups import FORMING_S, STUCK_S, Policy, Restart
from disagg_operator.intents import CreatePod, Delete
from disagg_operator.kinds import Kind
from disagg_operator.role_status import restarts_of
from disagg_operator.timestamps import timestamp_s

BARE = {"router": {"type": "external"}}

# Further away is only the next rotation of the keys.
DAY_S = 86400.0


@pytest.fixture
def wide(deployment):
    """One prefill group of three pods, one decode pod."""
    return deployment(roles={"prefill": {"nodesPerReplica": 3}}, **BARE)


@pytest.fixture
def ranks(cluster, wide, pods_of):
    cluster.converge(wide)
    return pods_of(cluster, "prefill")


def later(cluster, seconds):
    cluster.now += seconds


def gone(plan):
    return sorted(intent.name for intent in plan.intents if isinstance(intent, Delete))


def made(plan):
    return sorted(intent.name for intent in plan.intents if isinstance(intent, CreatePod))


def being_deleted(cluster, name):
    cluster.objects[Kind.POD, name]["metadata"]["deletionTimestamp"] = timestamp_s(cluster.now)


def crash_engine(cluster, name):
    for status in cluster.objects[Kind.POD, name]["status"].get("containerStatuses", ()):
        if status["name"] == "engine":
            status["restartCount"] = 1


def test_member_whose_engine_restarted_takes_its_group_down_and_all_come_back(cluster, wide, ranks):
    crash_engine(cluster, ranks[1])
    plan = cluster.decide(wide)
    assert gone(plan) == ranks
    cluster.carry_out(plan)
    assert made(cluster.decide(wide)) == ranks
    cluster.converge(wide)
    [restart] = cluster.restarts.values()
    assert (restart.count, restart.reason) == (1, f"the engine of pod {ranks[1]} was restarted")


def test_other_groups_are_left_alone(cluster, deployment, pods_of):
    two = deployment(roles={"prefill": {"nodesPerReplica": 2, "replicas": 2}}, **BARE)
    cluster.converge(two)
    crash_engine(cluster, pods_of(cluster, "prefill")[0])
    assert gone(cluster.decide(two)) == pods_of(cluster, "prefill")[:2]


def test_member_that_is_evicted_takes_the_others_along(cluster, wide, ranks):
    being_deleted(cluster, ranks[2])
    assert gone(cluster.decide(wide)) == ranks[:2]


def test_group_on_its_way_out_comes_back_only_whole(cluster, wide, ranks):
    for name in ranks[:2]:
        del cluster.objects[Kind.POD, name]
    being_deleted(cluster, ranks[2])
    assert cluster.decide(wide).intents == ()


def test_member_not_created_yet_is_no_lost_one(cluster, wide, ranks, pod_statuses):
    later(cluster, FORMING_S - 1)
    del cluster.objects[Kind.POD, ranks[1]]
    for pod in cluster.of(Kind.POD).values():
        pod["status"] = pod_statuses["running"](pod, ready=False)
    plan = cluster.decide(wide)
    assert (made(plan), gone(plan)) == ([ranks[1]], [])


def test_member_lost_from_a_ready_group_restarts_it_at_once(cluster, wide, ranks):
    del cluster.objects[Kind.POD, ranks[1]]
    assert gone(cluster.decide(wide)) == [ranks[0], ranks[2]]


def test_member_lost_later_restarts_the_group(cluster, wide, ranks, pod_statuses):
    later(cluster, FORMING_S)
    del cluster.objects[Kind.POD, ranks[1]]
    for pod in cluster.of(Kind.POD).values():
        pod["status"] = pod_statuses["running"](pod, ready=False)
    assert gone(cluster.decide(wide)) == [ranks[0], ranks[2]]


def test_group_of_one_pod_does_not_mind_restarts_that_the_kubelet_makes(
    cluster, deployment, pods_of
):
    cluster.converge(deployment())
    crash_engine(cluster, pods_of(cluster, "decode")[0])
    assert cluster.decide(deployment()).intents == ()


def test_pauses_grow_to_a_limit():
    policy = Policy(base_s=30, limit_s=600, most=0, reset_s=3600)
    pauses = [policy.pause_s(count) for count in (1, 2, 3, 4, 5, 6, 7, 5000)]
    assert pauses == [0, 30, 60, 120, 240, 480, 600, 600]


def test_second_restart_waits_and_the_plan_says_until_when(cluster, wide, ranks):
    for _ in range(2):
        crash_engine(cluster, ranks[0])
        cluster.carry_out(cluster.decide(wide))
        if made(cluster.decide(wide)):
            cluster.converge(wide)
    plan = cluster.decide(wide)
    assert (made(plan), plan.wake_at) == ([], cluster.now + 30)
    later(cluster, 30)
    assert made(cluster.decide(wide)) == ranks


def test_restarts_end_at_the_ceiling(cluster, deployment, pods_of):
    strict = deployment(restart={"maxRestarts": 1}, **BARE)
    cluster.converge(strict)
    for _ in range(2):
        [name] = pods_of(cluster, "decode")
        cluster.objects[Kind.POD, name]["status"]["phase"] = "Failed"
        cluster.converge(strict)
    assert pods_of(cluster, "decode") == []
    later(cluster, 10**6)
    assert cluster.decide(strict).intents == ()


def test_group_that_was_well_for_long_counts_anew(cluster, wide, ranks):
    crash_engine(cluster, ranks[0])
    cluster.converge(wide)
    plan = cluster.decide(wide)
    assert plan.wake_at == cluster.now + 3600
    later(cluster, 3600)
    assert cluster.decide(wide).restarts == {}


def test_pod_on_a_dead_node_is_taken_off_the_server(cluster, deployment, pods_of):
    cluster.converge(deployment(**BARE))
    [name] = pods_of(cluster, "decode")
    being_deleted(cluster, name)
    waiting = cluster.decide(deployment(**BARE))
    assert (waiting.intents, waiting.wake_at) == ((), cluster.now + STUCK_S)
    later(cluster, STUCK_S)
    [forced] = cluster.decide(deployment(**BARE)).intents
    assert (forced.name, forced.force) == (name, True)


def test_status_remembers_restarts_of_this_revision_only(world):
    world.cluster.restarts = {("decode", 0): Restart(count=3, at=world.now, reason="why")}
    status = world.status()
    [group] = next(role for role in status.roles if role.name == "decode").groups
    assert (group.group, group.restarts, group.reason) == (0, 3, "why")
    assert restarts_of(status, revision=status.update_revision) == world.cluster.restarts
    assert restarts_of(status, revision="other") == {}


def test_group_that_waits_or_was_given_up_is_told(world):
    name = world.decode
    del world.cluster.objects[Kind.POD, name]
    world.cluster.restarts = {("decode", 0): Restart(count=4, at=world.now, reason="it ended")}
    condition = world.condition(names.DECODE_READY)
    assert condition.reason == names.REASON_RESTART_BACKOFF
    assert "it ended" in condition.message
    spec = world.deployment.spec
    bounded = spec.restart.model_copy(update={"max_restarts": 3})
    world.deployment = replace(world.deployment, spec=spec.model_copy(update={"restart": bounded}))
    assert world.condition(names.DECODE_READY).reason == names.REASON_RESTART_LIMIT


class Walk:
    """Random failures, edits, crashes and passes; what must hold is asked after each step."""

    def __init__(self, cluster, deployment, seed):
        self.cluster, self.deployment, self.random = cluster, deployment, random.Random(seed)
        self.spec = self.edited()

    def edited(self):
        pick = self.random.choice
        return self.deployment(
            roles={
                "prefill": {"replicas": pick([1, 2]), "nodesPerReplica": 2},
                "decode": {"replicas": pick([1, 2, 3])},
            },
            engine={"args": [pick(["a", "b"])]},
            restart={"maxRestarts": 0},
            router={"type": pick(["sglang", "external"])},
        )

    def step(self):
        kind = self.random.choices(
            ["pass", "settle", "time", "fail", "vanish", "evict", "crash", "edit", "restart"],
            weights=[40, 30, 10, 4, 4, 4, 4, 2, 2],
        )[0]
        getattr(self, kind)()

    def one(self):
        pods = sorted(self.cluster.of(Kind.POD))
        return self.random.choice(pods) if pods else None

    def settle(self):
        """Also the kubelet's and the garbage collector's part in deletions."""
        for name, body in list(self.cluster.of(Kind.POD).items()):
            if "deletionTimestamp" in body["metadata"]:
                del self.cluster.objects[Kind.POD, name]
        self.cluster.settle()

    def time(self):
        later(self.cluster, self.random.choice([1, 70, 700]))

    def fail(self):
        if name := self.one():
            self.cluster.objects[Kind.POD, name]["status"]["phase"] = "Failed"

    def vanish(self):
        if name := self.one():
            del self.cluster.objects[Kind.POD, name]

    def evict(self):
        if name := self.one():
            being_deleted(self.cluster, name)

    def crash(self):
        if name := self.one():
            crash_engine(self.cluster, name)

    def edit(self):
        self.spec = self.edited()

    def restart(self):
        self.cluster.keys = None
        if self.random.random() < 0.5:
            self.cluster.restarts = {}

    def pass_(self):
        plan = self.cluster.decide(self.spec)
        assert plan.wake_at is None or plan.wake_at > self.cluster.now
        doomed, created = set(gone(plan)), set(made(plan))
        assert not doomed & created
        self.cluster.carry_out(plan)

    def converges(self):
        for _ in range(40):
            self.settle()
            plan = self.cluster.decide(self.spec)
            if not plan.intents and not 0 < (plan.wake_at or 0) - self.cluster.now < DAY_S:
                break
            self.cluster.carry_out(plan)
            if not plan.intents:
                self.cluster.now = plan.wake_at
        assert self.cluster.decide(self.spec).intents == ()
        roles = self.spec.spec.roles
        assert len(self.cluster.of(Kind.POD)) == 2 * roles.prefill.replicas + roles.decode.replicas


setattr(Walk, "pass", Walk.pass_)


@pytest.mark.parametrize("seed", range(4))
def test_random_walk_of_failures_edits_and_crashes_always_converges(new_cluster, deployment, seed):
    walk = Walk(new_cluster(), deployment, seed)
    for number in range(2500):
        walk.step()
        if number % 250 == 249:
            walk.converges()
