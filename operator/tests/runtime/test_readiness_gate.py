"""Pods with preflight.mode Required are Ready once state was seen to move to or from them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator import names
from disagg_operator.gates import Pair, held_pods
from disagg_operator.intents import Tell
from disagg_operator.kinds import Kind
from disagg_operator.observe import AgentView
from disagg_transfer.contract import PeerReport, PeerState


class Cell:
    """Prefill and decode pods of one deployment, whose agents say what the test wants."""

    def __init__(self, cluster, deployment, reported, *, prefills, decodes, mode="Required"):
        self.cluster, self.reported = cluster, reported
        self.deployment = deployment(
            roles={"prefill": {"replicas": prefills}, "decode": {"replicas": decodes}},
            transfer={"preflight": {"mode": mode}},
        )
        cluster.converge(self.deployment)
        self.prefills, self.decodes = self.pods("prefill"), self.pods("decode")
        self.rows, self.peers = {}, {}
        for pod in (*self.prefills, *self.decodes):
            self.tell(pod)

    def pods(self, role):
        observed = self.cluster.observed(self.deployment)
        return [name for name, pod in observed.pods.items() if pod.role == role]

    def tell(self, pod, *, incarnation="1", error=""):
        role = "prefill" if pod in self.prefills else "decode"
        report = self.reported.report(
            pod,
            role=role,
            incarnation=incarnation,
            preflight=tuple(row for (_, decode), row in self.rows.items() if decode == pod),
            peers=tuple(peer for (_, decode), peer in self.peers.items() if decode == pod),
        )
        self.cluster.views[pod] = AgentView(report=report, error=error)

    def sampled(self, prefill, decode, state, *, incarnation="1", peer="up"):
        self.peers[prefill, decode] = PeerReport(
            pod=prefill, incarnation=incarnation, state=PeerState(peer), detail="connection reset"
        )
        if state is None:
            self.rows.pop((prefill, decode), None)
        else:
            self.rows[prefill, decode] = self.reported.sample(
                prefill, state, detail="no whole sample within 10 s"
            )
        self.tell(decode)

    def step(self):
        """One pass, then the kubelet's part; what was told of gates."""
        plan = self.cluster.decide(self.deployment)
        self.cluster.carry_out(plan)
        self.cluster.settle()
        return {i.name: i for i in plan.intents if isinstance(i, Tell) and i.kind is Kind.POD}

    @property
    def ready(self):
        observed = self.cluster.observed(self.deployment)
        return {
            name for name, pod in observed.pods.items() if pod.role in names.ROLES and pod.ready
        }


@pytest.fixture
def cell(cluster, deployment, reported):
    def cell(prefills=1, decodes=1, **fields):
        return Cell(cluster, deployment, reported, prefills=prefills, decodes=decodes, **fields)

    return cell


def test_pods_wait_for_a_sample_that_arrived_whole(cell):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "pending")
    assert one.step() == {}
    assert one.ready == set()
    one.sampled(prefill, decode, "passed")
    assert one.step().keys() == {prefill, decode}
    assert one.ready == {prefill, decode}
    assert one.step() == {}, "an open gate is not told again"


@pytest.mark.parametrize("mode", ["Observe", "Off"])
def test_there_is_no_gate_where_preflight_is_not_required(cell, mode):
    one = cell(mode=mode)
    one.sampled(one.prefills[0], one.decodes[0], "failed")
    assert one.step() == {}
    assert one.ready == {*one.prefills, *one.decodes}


def test_a_pair_that_fails_later_closes_both_gates_until_it_is_healed(cell):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "passed")
    one.step()
    one.sampled(prefill, decode, "failed")
    told = one.step()
    assert one.ready == set()
    (condition,) = told[prefill].body["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("disagg.dev/state-moves", "False")
    assert condition["reason"] == "StateDoesNotMove"
    assert condition["message"] == (
        f"sample from pod {prefill} to pod {decode}: Timeout: no whole sample within 10 s"
    )
    one.sampled(prefill, decode, "passed")
    one.step()
    assert one.ready == {prefill, decode}


def test_a_sample_under_way_closes_no_gate(cell):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "passed")
    one.step()
    one.sampled(prefill, decode, "pending")
    assert one.step() == {}


def test_of_many_pods_only_the_broken_one_is_held(cell):
    one = cell(prefills=3, decodes=3)
    broken = one.prefills[1]
    for prefill, decode in itertools.product(one.prefills, one.decodes):
        one.sampled(prefill, decode, "failed" if prefill == broken else "passed")
    one.step()
    assert one.ready == {*one.prefills, *one.decodes} - {broken}


def test_a_new_pod_does_not_wait_for_a_peer_that_never_answers(cell):
    one = cell(decodes=2)
    (prefill,), (first, second) = one.prefills, one.decodes
    one.sampled(prefill, first, "passed")
    one.sampled(prefill, second, "pending")
    one.step()
    assert one.ready == {prefill, first}


def test_a_lost_prefill_agent_that_still_answers_closes_the_gates(cell):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "passed")
    one.step()
    one.sampled(prefill, decode, None, peer="down")
    told = one.step()
    assert one.ready == set()
    message = told[decode].body["status"]["conditions"][0]["message"]
    assert message == f"decode pod {decode} lost prefill pod {prefill}: connection reset"


def test_what_was_sampled_of_another_process_says_nothing_of_this_one(cell):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "passed", incarnation="0")
    assert one.step() == {}
    one.sampled(prefill, decode, "passed")
    assert one.step().keys() == {prefill, decode}


@pytest.mark.parametrize("silent", ["prefill", "decode"])
def test_the_last_words_of_an_agent_that_fell_silent_move_no_gate(cell, silent):
    one = cell()
    (prefill,), (decode,) = one.prefills, one.decodes
    one.sampled(prefill, decode, "passed")
    one.tell(prefill if silent == "prefill" else decode, error="TimeoutError")
    assert one.step() == {}


def test_an_operator_that_has_no_reports_yet_closes_no_gate(cell):
    one = cell()
    one.sampled(one.prefills[0], one.decodes[0], "passed")
    one.step()
    one.cluster.views.clear()
    assert one.step() == {}


def test_the_status_says_that_a_pod_waits_for_its_gate_and_why(world, deployment, reported):
    world.deployment = deployment(transfer={"preflight": {"mode": "Required"}})
    world.cluster.converge(world.deployment)
    told = world.condition(names.DECODE_READY)
    assert (told.status, told.reason) == ("False", "PreflightPending")
    assert "is held back until state is seen to move: no sample of it" in told.message


PODS = st.integers(0, 4)
MATRIX = st.dictionaries(st.tuples(PODS, PODS), st.booleans(), max_size=25)


@given(MATRIX)
def test_no_failing_pair_is_left_open_and_nobody_is_held_without_need(matrix):
    pairs = [
        Pair(prefill=f"p{p}", decode=f"d{d}", failure="" if passed else f"p{p} d{d}")
        for (p, d), passed in matrix.items()
    ]
    held = held_pods(pairs)
    for pair in pairs:
        if pair.failure:
            assert held.keys() & set(pair.pods)
    for pod, why in held.items():
        own = [pair for pair in pairs if pod in pair.pods]
        assert why in {pair.failure for pair in own if pair.failure}
    all_pass = {pod for pair in pairs for pod in pair.pods} - {
        pod for pair in pairs if pair.failure for pod in pair.pods
    }
    assert not held.keys() & all_pass
