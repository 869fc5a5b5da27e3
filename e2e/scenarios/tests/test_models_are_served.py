"""The main job in real pods: tokens that came through the transfer equal those of one process."""

import json

import pytest

from disagg_scenarios import demo, seen
from disagg_scenarios.kube import wait_for
from disagg_scenarios.serving import generate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def applied(kubectl):
    for model in demo.MODELS:
        kubectl.run("apply", "-f", str(demo.EXAMPLES / f"{model}.yaml"))
    return kubectl


@pytest.mark.parametrize("model", demo.MODELS)
def test_tokens_through_the_router_equal_one_process(applied, model):
    line = demo.serve(applied, model)
    assert line.startswith(f"ok {model}: 24/24 tokens equal")


def test_kubectl_wait_and_the_columns_tell_that_it_serves(applied):
    applied.run("wait", "ddep", "--all", "--for=condition=Ready", "--timeout=5s")
    header, *rows = applied.run("get", "ddep").strip().splitlines()
    assert header.split() == [
        "NAME", "READY", "PREFILL", "DECODE", "TRANSFER", "TRANSPORT", "REASON", "AGE",
    ]  # fmt: skip
    for row in rows:
        assert row.split()[1:6] == ["True", "1/1", "1/1", "True", "tcp"]


def test_a_change_of_decode_alone_leaves_prefill_running_and_the_tokens_as_they_are(applied):
    name = demo.MODELS[0]
    before = generate(applied, name)
    prefill, decode = (
        applied.get("pod", demo.role_pod(applied, name, role)) for role in ("prefill", "decode")
    )
    changed = {"spec": {"roles": {"decode": {"env": [{"name": "TUNE", "value": "1"}]}}}}
    applied.run("patch", "ddep", name, "--type=merge", "-p", json.dumps(changed))

    def replaced():
        found = json.loads(applied.run("get", "pods", "-o", "json"))["items"]
        uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}
        assert uids[prefill["metadata"]["name"]] == prefill["metadata"]["uid"]
        return uids.get(decode["metadata"]["name"], "") not in {"", decode["metadata"]["uid"]}

    wait_for("another decode pod of that name", replaced, bool, demo.READY_S)
    demo.wait_ready(applied, name)
    assert generate(applied, name).tokens == before.tokens
    assert seen.is_true(applied.get("ddep", name), "TransferHealthy")
