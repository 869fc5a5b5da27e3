"""Keys get a new generation in time, and agents always share one, whenever each sees its Secret."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from disagg_operator.api.status import DisaggDeploymentStatus
from disagg_operator.intents import WriteKeys
from disagg_operator.kinds import Kind
from disagg_operator.plan import MISSING_AFTER_S
from disagg_operator.report import keys_of
from disagg_operator.root_key import RootKey
from disagg_operator.rotation import Keys, generation_due, generation_of, keys_after
from disagg_transfer.contract import report_token

HOUR_S = 3600.0
# A kubelet brings a changed Secret to its pods within this, by far: the shortest period.
LAG_S = HOUR_S
ROTATION = {"transfer": {"keyRotation": "2h"}}
EARLIER = Keys(generation=4, key="k", since=1000.0)


def key_writes(plan):
    return {i.revision: i.generation for i in plan.intents if isinstance(i, WriteKeys)}


def test_a_period_later_there_is_one_write_and_then_none(cluster, deployment):
    spec = deployment(**ROTATION)
    cluster.converge(spec)
    begun = cluster.keys
    due_at = begun.since + 2 * HOUR_S
    plan = cluster.decide(spec)
    assert (plan.intents, plan.wake_at) == ((), due_at)
    cluster.now = due_at - 1
    assert cluster.decide(spec).intents == ()
    cluster.now = due_at
    plan = cluster.decide(spec)
    assert list(key_writes(plan).values()) == [2]
    assert len(plan.intents) == 1
    cluster.carry_out(plan)
    assert cluster.keys.key != begun.key
    plan = cluster.decide(spec)
    assert (plan.intents, plan.wake_at) == ((), due_at + 2 * HOUR_S)


def test_never_means_never(cluster, deployment):
    spec = deployment(transfer={"keyRotation": "Never"})
    cluster.converge(spec)
    cluster.now += 10**9
    plan = cluster.decide(spec)
    assert (plan.intents, plan.wake_at) == ((), None)


def test_a_paused_deployment_keeps_its_keys_until_it_goes_on(cluster, deployment):
    cluster.converge(deployment(**ROTATION))
    begun = cluster.keys
    cluster.now += 9 * HOUR_S
    plan = cluster.decide(deployment(paused=True, **ROTATION))
    cluster.carry_out(plan)
    assert cluster.keys == begun
    cluster.carry_out(cluster.decide(deployment(**ROTATION)))
    assert cluster.keys.generation == 2


def test_two_revisions_get_their_new_keys_together(cluster, deployment):
    cluster.converge(deployment(**ROTATION))
    spec = deployment(model={"source": "another"}, **ROTATION)
    cluster.carry_out(cluster.decide(spec))
    assert cluster.keys.generation == 1
    cluster.now += 2 * HOUR_S
    plan = cluster.decide(spec)
    assert sorted(key_writes(plan).values()) == [2, 2]


def test_a_revision_that_begins_anew_has_other_keys(cluster, deployment):
    first, second = deployment(), deployment(model={"source": "another"})
    keys = []
    for spec in (first, second, first):
        cluster.converge(spec)
        keys.append(cluster.keys.key)
    assert len(set(keys)) == 3
    assert cluster.keys.generation == 1


def test_another_root_makes_new_keys_at_once(cluster, deployment):
    cluster.converge(deployment())
    cluster.root = RootKey(b"s" * 32)
    plan = cluster.decide(deployment())
    assert list(key_writes(plan).values()) == [1]
    cluster.carry_out(plan)
    assert cluster.decide(deployment()).intents == ()


@pytest.fixture
def held_up(cluster, deployment, pod_statuses):
    """Pods that have a node, and whose containers the kubelet does not create."""
    cluster.carry_out(cluster.decide(deployment()))
    for body in cluster.of(Kind.POD).values():
        body["spec"]["nodeName"] = "node"
        status = pod_statuses["running"](body, ready=False)
        for each in (*status["initContainerStatuses"], *status["containerStatuses"]):
            each["state"] = {"waiting": {"reason": "PodInitializing"}}
        body["status"] = status | {"phase": "Pending"}
    return cluster


def test_keys_are_written_again_while_pods_wait_for_a_secret_that_may_be_gone(held_up, deployment):
    begun = held_up.now
    assert held_up.decide(deployment()).wake_at == begun + MISSING_AFTER_S
    for minutes in (1, 2, 3):
        held_up.now = begun + minutes * MISSING_AFTER_S
        before = held_up.keys
        plan = held_up.decide(deployment())
        assert list(key_writes(plan).values()) == [1]
        held_up.carry_out(plan)
        assert held_up.keys == before
        plan = held_up.decide(deployment())
        assert (plan.intents, plan.wake_at) == ((), held_up.now + MISSING_AFTER_S)
    held_up.settle()
    held_up.now += MISSING_AFTER_S
    assert key_writes(held_up.decide(deployment())) == {}


@pytest.mark.parametrize(
    "state",
    [
        {"waiting": {"reason": "ImagePullBackOff"}},
        {"waiting": {"reason": "CrashLoopBackOff"}},
        {"terminated": {"exitCode": 2}},
    ],
)
def test_agents_that_do_not_start_for_another_reason_get_no_new_secret(held_up, deployment, state):
    for body in held_up.of(Kind.POD).values():
        for each in body["status"]["initContainerStatuses"]:
            each["state"] = state
    held_up.now += MISSING_AFTER_S
    assert key_writes(held_up.decide(deployment())) == {}


def test_the_status_tells_the_generation_and_is_all_that_is_remembered(world):
    status = world.status()
    again = DisaggDeploymentStatus.model_validate(status.to_object())
    assert keys_of(again) == world.cluster.keys
    assert (status.keys.generation, status.keys.key) == (1, world.cluster.keys.key)


def after(*, asked, written, kept=(), before=EARLIER):
    return keys_after(before, update="new", asked=asked, written=written, kept=kept, now=5000.0)


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({}, {}),
        ({"new": 5}, {}),
        ({"new": 5, "old": 5}, {"new": "n"}),
        ({"new": 5, "old": 5}, {"old": "o"}),
    ],
)
def test_a_rotation_that_was_not_done_whole_is_due_still(asked, written):
    assert after(asked=asked, written=written) == EARLIER


def test_keys_of_a_new_revision_do_not_put_a_rotation_off():
    found = after(asked={"new": 4}, written={"new": "n"})
    assert found == Keys(generation=4, key="n", since=EARLIER.since)


def test_a_secret_that_cannot_be_changed_is_tried_again_a_period_later():
    found = after(asked={"new": 5}, written={"new": "n"}, kept={"new"})
    assert found == Keys(generation=4, key=EARLIER.key, since=5000.0)


@given(st.floats(0, 10**9), st.sampled_from(["1h", "720h", "9999h", "Never"]))
def test_a_generation_is_never_left_out(late_s, rotation):
    due = generation_due(EARLIER, rotation=rotation, now=EARLIER.since + late_s)
    assert due in {EARLIER.generation, EARLIER.generation + 1}


class Rotations(RuleBasedStateMachine):
    """An operator that rotates, restarts and changes its mind; two agents that see the Secret
    late, each at its own moment.
    """

    SERVICE = "service"

    @initialize()
    def begin(self):
        self.root, self.now, self.rotation = RootKey(b"r" * 32), 0.0, "1h"
        self.keys = None
        self.versions = []  # (when it was written, generation)
        self.write()
        self.agents = [SimpleNamespace(seen=0), SimpleNamespace(seen=0)]

    def write(self, *, crash=False):
        """One pass; one that crashes has written the Secret and not the status."""
        generation = generation_due(self.keys, rotation=self.rotation, now=self.now)
        if self.keys is not None and generation == generation_of(self.keys):
            return
        self.versions.append((self.now, generation))
        if not crash:
            written = {"r": self.root.key_id(self.SERVICE, generation=generation)}
            self.keys = keys_after(
                self.keys,
                update="r",
                asked={"r": generation},
                written=written,
                kept=(),
                now=self.now,
            )

    @rule(crash=st.booleans())
    def operator_passes(self, crash):
        self.write(crash=crash)

    @rule(rotation=st.sampled_from(["1h", "2h", "720h", "Never"]))
    def somebody_edits(self, rotation):
        self.rotation = rotation

    @rule(agent=st.integers(0, 1))
    def kubelet_brings_the_newest(self, agent):
        self.agents[agent].seen = len(self.versions) - 1

    @precondition(lambda self: self.versions)
    @rule(seconds=st.one_of(st.floats(0, 2 * HOUR_S), st.floats(0, 2000 * HOUR_S)))
    def time_goes_by(self, seconds):
        """No agent stays with a version for the lag after it was replaced."""
        for agent in self.agents:
            replaced = [at for at, _ in self.versions[agent.seen + 1 :]]
            if replaced and replaced[0] + LAG_S <= self.now + seconds:
                agent.seen = len(self.versions) - 1
        self.now += seconds

    def held(self, agent):
        _, generation = self.versions[agent.seen]
        text = self.root.key_file(self.SERVICE, generation=generation).decode()
        return [bytes.fromhex(line) for line in text.split()]

    @invariant()
    def agents_share_a_key(self):
        if self.versions:
            one, other = map(self.held, self.agents)
            assert set(one) & set(other)

    @invariant()
    def the_operator_is_answered(self):
        """A crash between Secret and status leaves the token of before until the next pass."""
        if not self.versions:
            return
        asked = {generation_of(self.keys)} | {self.versions[-1][1]}
        tokens = {self.root.report_token(self.SERVICE, generation=each) for each in asked}
        for agent in self.agents:
            assert tokens & {report_token(key) for key in self.held(agent)}


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
