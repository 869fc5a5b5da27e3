"""A wrong manifest is refused at apply where one object can tell, else a condition names the fault."""

import pytest

from disagg_scenarios import demo, seen
from disagg_scenarios.kube import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CONDITION_S = 180.0


def manifest(name, **engine):
    found = demo.example("tiny-qwen3-next")
    found["metadata"]["name"] = name
    found["spec"].setdefault("engine", {}).update(engine)
    return found


def told(kubectl, name, kind, reason):
    found = wait_for(
        f"{name}: {kind} False for {reason}",
        lambda: kubectl.get("ddep", name),
        lambda resource: seen.condition(resource, kind).reason == reason,
        CONDITION_S,
    )
    return seen.condition(found, kind)


def test_an_unknown_state_type_is_refused_naming_the_known_ones(refused):
    wrong = manifest("unknown-type")
    wrong["spec"]["model"]["stateTypes"] = ["kv", "mumba"]
    said = refused(wrong)
    assert all(part in said for part in ("stateTypes", "mumba", "mamba", "swa", "nsa"))


def test_bad_parallelism_is_refused_naming_both_numbers(refused):
    wrong = demo.example("deepseek-v3.2-h200")
    wrong["spec"]["roles"]["prefill"]["parallelism"] = {"tp": 3}
    said = refused(wrong)
    assert "prefill" in said
    assert "tp" in said
    assert "3" in said


def test_a_bad_image_is_named_with_its_container(kubectl):
    kubectl.apply(manifest("bad-image", image="docker.io/local/no-such-image:1"))
    condition = told(kubectl, "bad-image", "PrefillReady", "ImagePullFailed")
    assert condition.status == "False"
    assert "docker.io/local/no-such-image:1" in condition.message
    assert "engine" in condition.message
    ready = told(kubectl, "bad-image", "Ready", "ImagePullFailed")
    assert ready.status == "False"
    kubectl.run("delete", "ddep", "bad-image", "--timeout=60s")


def test_decode_lacking_a_component_is_named_before_any_request(kubectl):
    lacking = manifest("lacks-conv")
    decode = lacking["spec"].setdefault("roles", {}).setdefault("decode", {})
    decode["args"] = ["--fault-drop-component=mamba.conv"]
    kubectl.apply(lacking)
    condition = told(kubectl, "lacks-conv", "Ready", "LayoutMismatch")
    assert "mamba.conv" in condition.message
    assert "lacks-conv-prefill" in condition.message
    assert "lacks-conv-decode" in condition.message
    kubectl.run("delete", "ddep", "lacks-conv", "--timeout=60s")


def test_decode_lacking_a_state_type_is_named_with_both_lists(kubectl):
    lacking = manifest("lacks-mamba")
    decode = lacking["spec"].setdefault("roles", {}).setdefault("decode", {})
    decode["args"] = [f"--fault-drop-component=mamba.{part}" for part in ("conv", "recurrent")]
    kubectl.apply(lacking)
    found = wait_for(
        "DecodeReady names the state types of both sides",
        lambda: seen.condition(kubectl.get("ddep", "lacks-mamba"), "DecodeReady"),
        lambda condition: "stateTypes" in condition.message,
        CONDITION_S,
    )
    assert found.status == "False"
    assert "kv, mamba" in found.message
    assert "lacks-mamba-decode" in found.message
    kubectl.run("delete", "ddep", "lacks-mamba", "--timeout=60s")


KINDS = "pods,services,deployments,replicasets,secrets,configmaps,networkpolicies"


def remains(kubectl, name):
    owned = kubectl.select(KINDS, f"disagg.dev/deployment={name}")
    return [f"{found['kind']}/{found['metadata']['name']}" for found in owned]


def test_deleting_while_it_is_being_created_leaves_nothing(kubectl):
    kubectl.apply(manifest("short-lived"))
    wait_for(
        "the first pod of short-lived exists",
        lambda: remains(kubectl, "short-lived"),
        lambda left: any(name.startswith("Pod/") for name in left),
        60,
    )
    kubectl.run("delete", "ddep", "short-lived", "--timeout=60s")
    wait_for(
        "nothing of short-lived is left",
        lambda: remains(kubectl, "short-lived"),
        lambda left: left == [],
        90,
    )
    assert remains(kubectl, "short-lived") == []
