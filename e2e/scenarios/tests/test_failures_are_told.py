"""Faults in real pods: each ends in an error with a cause, is told in the resource, and heals."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from disagg_scenarios import demo, seen
from disagg_scenarios.kube import KubectlError, wait_for
from disagg_scenarios.pods import kill_in_pod, report
from disagg_scenarios.serving import Answer, generate, monolith

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAME = demo.FAULTY
# The wait that a fault must cut short: far above every bound asserted here.
LONG_DEADLINE = "120s"
# Told to the other side within 1 s (design, promise 2), then two HTTP hops and kubectl.
TOLD_S = 6.0
STATUS_S = demo.STATUS_S


@pytest.fixture(scope="module")
def served(kubectl):
    manifest = demo.example(NAME)
    manifest["spec"].setdefault("transfer", {})["faultSwitch"] = "Enabled"
    manifest["spec"]["transfer"]["timeouts"] = {"stateTypes": {"mamba": LONG_DEADLINE}}
    # What heals below has passed the pods' readiness gates, too.
    manifest["spec"]["transfer"]["preflight"] = {"mode": "Required"}
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


def switch(kubectl, pod, *words):
    """Turn the fault switch; the status may not tell yet that the agent is being restarted."""

    def turned():
        try:
            return demo.agent(kubectl, pod, "fault", *words)
        except KubectlError as refused:
            return refused

    wait_for(f"the agent of {pod} takes {words}", turned, lambda said: isinstance(said, str), 60)


@pytest.fixture
def stuck(served, prefill, decode):
    """A request in mid-transfer: kv is in, mamba is withheld, decode waits."""
    switch(served, prefill, "withhold", "mamba")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(generate, served, NAME, timeout_s=100)
        wait_for(
            "decode waits for the withheld state",
            lambda: report(served, decode)["inflight"],
            lambda inflight: inflight > 0,
            15,
        )
        yield answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a fault came to: the client's answer, and the row that the resource shows."""

    answer: Answer
    failure: Mapping[str, Any]


def ending(kubectl, answer, act):
    before = seen.state_row(kubectl.get("ddep", NAME), "mamba").get("lastFailure", {})
    started = time.monotonic()
    act()
    answered = answer.result(timeout=90)
    took_s = time.monotonic() - started
    row = wait_for(
        "the row of mamba tells a newer failure",
        lambda: seen.state_row(kubectl.get("ddep", NAME), "mamba"),
        lambda found: found.get("lastFailure", {}).get("time") not in {None, before.get("time")},
        STATUS_S,
    )
    assert answered.status >= 400, answered
    assert not answered.tokens
    assert took_s < TOLD_S
    return Ending(answer=answered, failure=row["lastFailure"])


def heals(kubectl, expected):
    """With the fault lifted the next request succeeds once the pods are back, and status says so."""
    demo.wait_members(kubectl, NAME)
    switch(kubectl, demo.role_pod(kubectl, NAME, "prefill"), "lift")
    answer = wait_for(
        "a request succeeds again",
        lambda: generate(kubectl, NAME),
        lambda got: got.status == 200,
        60,
    )
    assert answer.tokens == expected
    wait_for(
        "Ready and TransferHealthy again",
        lambda: kubectl.get("ddep", NAME),
        lambda found: seen.is_true(found, "Ready") and seen.is_true(found, "TransferHealthy"),
        STATUS_S,
    )


def test_pods_are_ready_because_state_was_seen_to_move(served, prefill, decode):
    for pod in (prefill, decode):
        conditions = served.get("pod", pod)["status"]["conditions"]
        (gate,) = (item for item in conditions if item["type"] == "disagg.dev/state-moves")
        assert (gate["status"], gate["reason"]) == ("True", "StateMoves")


def test_a_killed_prefill_agent_is_told(served, stuck, prefill, decode, expected):
    found = ending(served, stuck, lambda: kill_in_pod(served, prefill, "disagg-agent"))
    assert "PeerLost" in found.answer.body
    assert found.failure["cause"] == "PeerLost"
    assert (found.failure["prefillPod"], found.failure["decodePod"]) == (prefill, decode)
    heals(served, expected)


def test_a_killed_decode_agent_is_told(served, stuck, prefill, decode, expected):
    found = ending(served, stuck, lambda: kill_in_pod(served, decode, "disagg-agent"))
    assert found.failure["cause"] == "PeerLost"
    assert (found.failure["prefillPod"], found.failure["decodePod"]) == (prefill, decode)
    heals(served, expected)


def test_a_killed_prefill_engine_is_told(served, stuck, prefill, decode, expected):
    found = ending(served, stuck, lambda: kill_in_pod(served, prefill, "disagg-engine"))
    assert found.failure["cause"] == "EngineLost"
    assert (found.failure["prefillPod"], found.failure["decodePod"]) == (prefill, decode)
    heals(served, expected)


def test_a_killed_decode_engine_is_told(served, stuck, prefill, decode, expected):
    found = ending(served, stuck, lambda: kill_in_pod(served, decode, "disagg-engine"))
    assert found.failure["cause"] == "EngineLost"
    assert (found.failure["prefillPod"], found.failure["decodePod"]) == (prefill, decode)
    heals(served, expected)


def test_a_prefill_pod_deleted_in_mid_transfer_is_told(served, stuck, prefill, decode, expected):
    force = ("--grace-period=0", "--force", "--wait=false")
    found = ending(served, stuck, lambda: served.run("delete", "pod", prefill, *force))
    assert found.failure["cause"] in {"PeerLost", "EngineLost"}  # whichever container ends first
    assert (found.failure["prefillPod"], found.failure["decodePod"]) == (prefill, decode)
    heals(served, expected)


def test_a_withheld_state_type_times_out_by_name(served, expected):
    patch = {"spec": {"transfer": {"timeouts": {"stateTypes": {"mamba": "3s"}}}}}
    served.run("patch", "ddep", NAME, "--type=merge", "-p", json.dumps(patch))
    demo.wait_ready(served, NAME)
    prefill, decode = (demo.role_pod(served, NAME, role) for role in ("prefill", "decode"))
    demo.agent(served, prefill, "fault", "withhold", "mamba")
    demo.expect_timeout(served, prefill, decode)
    demo.await_event(served, prefill, decode)
    heals(served, expected)
