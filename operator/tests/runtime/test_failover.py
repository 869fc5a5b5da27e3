"""Two real operator processes on a real API server; the one that leads dies."""

import contextlib
import signal
import uuid
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from disagg_fleet import OperatorProcess
from disagg_operator import names

pytestmark = pytest.mark.api

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny-qwen3-next.yaml"
START_S = 30.0
FAILOVER_S = 20.0
KIND = (names.GROUP, names.VERSION)


def leads(operator):
    return "leads by Lease" in operator.log.read_text()


@pytest.fixture
def namespace(api):
    name = f"test-{uuid.uuid4().hex[:8]}"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
    return name


@pytest.fixture
def pair(kubeconfig, namespace, tmp_path, eventually):
    """The leader first."""
    first, second = (
        OperatorProcess(
            kubeconfig, namespace=namespace, log=tmp_path / name, lease=f"{namespace}/disagg"
        )
        for name in ("first", "second")
    )
    with contextlib.ExitStack() as running:
        for operator in (first, second):
            running.callback(operator.__enter__().kill)
            eventually(lambda: leads(first), what="the first one leads", within_s=START_S)
        yield first, second


@pytest.fixture
def converged(api, namespace):
    """Apply a manifest; true once an operator has told of it."""
    custom = client.CustomObjectsApi(api)

    def told(name):
        found = custom.get_namespaced_custom_object(*KIND, namespace, names.PLURAL, name)
        return found.get("status", {}).get("observedGeneration") == 1

    def apply(name):
        body = yaml.safe_load(EXAMPLE.read_text())
        body["metadata"]["name"] = name
        custom.create_namespaced_custom_object(*KIND, namespace, names.PLURAL, body)
        return lambda: told(name)

    return apply


@pytest.mark.parametrize(("sent", "within_s"), [("SIGKILL", FAILOVER_S), ("SIGTERM", 8.0)])
def test_another_takes_over_when_the_leader_ends(pair, converged, eventually, sent, within_s):
    leader, standby = pair
    eventually(converged("before"), what="the leader works", within_s=START_S)
    assert not leads(standby)
    leader.process.send_signal(getattr(signal, sent))
    leader.process.wait(within_s)
    eventually(converged("after"), what="the other one works", within_s=within_s)
    assert leads(standby)


def test_frozen_leader_writes_nothing_after_another_took_over(pair, converged, eventually):
    leader, standby = pair
    eventually(converged("before"), what="the leader works", within_s=START_S)
    leader.process.send_signal(signal.SIGSTOP)
    eventually(converged("after"), what="the other one works", within_s=FAILOVER_S)
    assert leads(standby)
    leader.process.send_signal(signal.SIGCONT)
    assert leader.process.wait(START_S) == 3
    assert "was not renewed in time" in leader.log.read_text()
