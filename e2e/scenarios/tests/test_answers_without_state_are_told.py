"""Engines that answer and never ask for their state: what this project exists to end."""

import pytest

from disagg_scenarios import demo, seen
from disagg_scenarios.kube import wait_for
from disagg_scenarios.serving import generate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAME = demo.FAULTY
# Two looks of the operator at the router, 10 s apart, after the one that it begins with.
TOLD_S = 60.0


def test_answers_without_any_state_are_told_by_pod(kubectl):
    manifest = demo.example(NAME)
    manifest["spec"].setdefault("engine", {})["args"] = ["--fault-skip-transfer"]
    kubectl.apply(manifest)
    demo.wait_ready(kubectl, NAME)

    def asked():
        assert generate(kubectl, NAME).status == 200
        return seen.condition(kubectl.get("ddep", NAME), "TransferHealthy")

    told = wait_for("TransferHealthy False", asked, lambda found: found.status == "False", TOLD_S)
    assert told.reason == "NoTransferTraffic"
    assert demo.decode_pod(kubectl, NAME) in told.message
    events = kubectl.run("get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}")
    assert "NoTransferTraffic" in events.split()
    ready = seen.condition(kubectl.get("ddep", NAME), "Ready")
    assert (ready.status, ready.reason) == ("False", "NoTransferTraffic")
