"""Faults in real pods: each ends in an error with a cause, is told in the resource, and heals."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from disagg_scenarios import demo, seen
from disagg_scenarios.kube import wait_for
from disagg_scenarios.pods import kill_in_pod, report
from disagg_scenarios.serving import generate, monolith

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAME = demo.FAULTY
# The wait that a fault must cut short: far above every bound asserted here.
LONG_DEADLINE = "120s"
# Told to the other side within 1 s (design, promise 2), then two HTTP hops and kubectl.
TOLD_S = 6.0


@pytest.fixture(scope="module")
def served(kubectl):
    manifest = demo.example(NAME)
    manifest["spec"].setdefault("transfer", {})["faultSwitch"] = "Enabled"
    manifest["spec"]["transfer"]["timeouts"] = {"stateTypes": {"mamba": LONG_DEADLINE}}
    kubectl.apply(manifest)
    demo.wait_ready(kubectl, NAME)
    return kubectl


@pytest.fixture(scope="module")
def expected(served):
    return monolith(served, demo.decode_pod(served, NAME), demo.example_model(NAME))


@pytest.fixture
def prefill(served):
    return demo.role_pod(served, NAME, "prefill")


@pytest.fixture
def decode(served):
    return demo.role_pod(served, NAME, "decode")


@pytest.fixture
def stuck(served, prefill, decode):
    """A request in mid-transfer: kv is in, mamba is withheld, decode waits."""
    demo.agent(served, prefill, "fault", "withhold", "mamba")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(generate, served, NAME, timeout_s=100)
        wait_for(
            "decode waits for the withheld state",
            lambda: report(served, decode)["inflight"],
            lambda inflight: inflight > 0,
            15,
        )
        yield answer


def ended_by(answer, act):
    """The seconds from a fault to the client's answer, and the answer."""
    started = time.monotonic()
    act()
    return answer.result(timeout=90), time.monotonic() - started


def cause_of(answer):
    return answer.error.get("type") or answer.body


def heals(kubectl, expected):
    """The next request succeeds once the pods are back, and the resource says so."""
    demo.wait_members(kubectl, NAME)
    answer = wait_for(
        "a request succeeds again",
        lambda: generate(kubectl, NAME),
        lambda got: got.status == 200,
        60,
    )
    assert answer.tokens == expected
    found = demo.wait_ready(kubectl, NAME)
    assert seen.is_true(found, "TransferHealthy")
    return found


def test_a_killed_prefill_agent_is_told(served, stuck, prefill, expected):
    answer, took = ended_by(stuck, lambda: kill_in_pod(served, prefill, "disagg-agent"))
    assert answer.status >= 400, answer
    assert "PeerLost" in answer.body, answer
    assert took < TOLD_S
    found = heals(served, expected)
    failure = seen.state_row(found, "mamba")["lastFailure"]
    assert failure["cause"] == "PeerLost"
    assert failure["prefillPod"] == prefill


def test_a_killed_decode_agent_is_told(served, stuck, decode, expected):
    answer, took = ended_by(stuck, lambda: kill_in_pod(served, decode, "disagg-agent"))
    assert answer.status >= 400, answer
    assert took < TOLD_S
    heals(served, expected)


def test_a_killed_prefill_engine_is_told(served, stuck, prefill, expected):
    answer, took = ended_by(stuck, lambda: kill_in_pod(served, prefill, "disagg-engine"))
    assert answer.status >= 400, answer
    assert took < TOLD_S
    found = heals(served, expected)
    assert seen.state_row(found, "mamba")["lastFailure"]["cause"] == "EngineLost"


def test_a_prefill_pod_deleted_in_mid_transfer_is_told(served, stuck, prefill, expected):
    answer, took = ended_by(
        stuck, lambda: served.run("delete", "pod", prefill, "--grace-period=0", "--force")
    )
    assert answer.status >= 400, answer
    assert took < TOLD_S
    found = heals(served, expected)
    assert seen.state_row(found, "mamba")["lastFailure"]["prefillPod"] == prefill


def test_a_withheld_state_type_times_out_by_name(served, expected):
    patch = {"spec": {"transfer": {"timeouts": {"stateTypes": {"mamba": "3s"}}}}}
    served.run("patch", "ddep", NAME, "--type=merge", "-p", json.dumps(patch))
    demo.wait_ready(served, NAME)
    prefill, decode = (demo.role_pod(served, NAME, role) for role in ("prefill", "decode"))
    demo.agent(served, prefill, "fault", "withhold", "mamba")
    demo.expect_timeout(served, prefill, decode)
    demo.await_event(served, prefill, decode)
    demo.agent(served, prefill, "fault", "lift")
    heals(served, expected)
