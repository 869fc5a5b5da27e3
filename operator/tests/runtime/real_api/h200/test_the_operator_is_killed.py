"""An operator that is killed at any moment of a creation or a deletion leaves nothing undone."""

import contextlib
from collections import Counter

import pytest

from disagg_fleet import OperatorProcess

pytestmark = pytest.mark.api

# What a first pass writes, in this order.
MOMENTS = ("service", "secret", "pod", "deployment")
START_S = 40.0


@pytest.fixture
def process(kubeconfig, namespace, tmp_path):
    """Starts an operator as a process of its own; all are ended at the end."""
    with contextlib.ExitStack() as running:

        def start():
            log = tmp_path / "operator.log"
            return running.enter_context(OperatorProcess(kubeconfig, namespace=namespace, log=log))

        yield start


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_killed_while_it_creates_is_finished_without_anything_twice(
    resource, nodes, process, groups, until, moment
):
    """No pod has a node before the first operator is dead, so it cannot have come to the end."""
    operator = process()
    await resource.apply()

    async def begun():
        return moment in {kind for kind, _, _ in await resource.children()}

    await until(begun, what=f"a first {moment}", within_s=START_S)
    operator.kill()
    assert not await resource.is_ready()
    await nodes.add(6)
    process()
    await until(resource.is_ready, what="Ready", within_s=START_S)
    found = await groups()
    assert {key: len(group.pods) for key, group in found.items()} == {
        ("prefill", 0): 2,
        ("prefill", 1): 2,
        ("decode", 0): 2,
    }
    kinds = Counter(kind for kind, _, _ in await resource.children())
    assert kinds == {
        "budget": 2,
        "deployment": 1,
        "pod": 8,
        "policy": 2,
        "replicaset": 1,
        "secret": 1,
        "service": 3,
    }


async def test_what_is_deleted_while_no_operator_runs_is_gone_once_one_does(
    resource, nodes, process, until, collected
):
    await nodes.add(6)
    operator = process()
    scaled = {"prefill": {}, "decode": {"scaling": {"mode": "External"}}}
    roles = {role: spec | scaled[role] for role, spec in resource.manifest["spec"]["roles"].items()}
    await resource.apply(roles=roles)
    await until(resource.is_ready, what="Ready", within_s=START_S)
    assert {kind for kind, _, _ in await resource.children()} == {
        *("budget", "deployment", "pod", "policy", "replicaset", "scaler", "secret", "service")
    }
    operator.kill()
    await resource.delete()
    process()

    async def nothing():
        return not await resource.children()

    await collected(nothing, what="nothing is left")
