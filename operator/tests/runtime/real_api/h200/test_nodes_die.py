"""Pods of nodes that died are freed, and their groups come back on other nodes."""

import pytest

from disagg_operator import groups as operator_groups
from disagg_operator import members, names

pytestmark = pytest.mark.api

GONE = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
# The server lets pods wait five minutes for their node unless they say something else.
IMPATIENT = {
    "terminationGracePeriodSeconds": 1,
    "tolerations": [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
        for key in GONE
    ],
}
# The collector of pods looks every 20 s, and waits 40 s for a node to come back.
ORPHANS_S = 120.0


@pytest.fixture
async def impatient(resource, nodes, operator, until, monkeypatch):
    """The example on six of eight nodes; its pods leave a dead node soon, and are freed soon after."""
    for module in (operator_groups, members):
        monkeypatch.setattr(module, "STUCK_S", 3.0)
    for role in resource.manifest["spec"]["roles"].values():
        role["template"]["spec"] |= IMPATIENT
    await nodes.add(8)
    await resource.apply()
    await until(resource.is_ready, what="Ready")
    return resource


@pytest.fixture
def back(impatient, groups):
    """Whether a group has other pods, none of them on the lost node, and all is well again."""

    async def back(before, lost):
        group = (await groups()).get((before.role, before.index))
        fresh = group is not None and group.ready and not group.uids & before.uids
        return fresh and lost not in group.nodes and await impatient.is_ready()

    return back


async def test_a_group_leaves_a_node_that_does_not_answer(impatient, groups, nodes, until, back):
    before = await groups()
    pod = before["prefill", 0].pods[1]
    name, node = pod.metadata.name, pod.spec.node_name
    await nodes.die(node)

    async def says(reason, message):
        status = await impatient.status()
        return (status["reason"], message in status["message"]) == (reason, True)

    silent = f"1 of 2 prefill groups are ready; node {node} of pod {name} does not answer"
    await until(
        lambda: says(names.REASON_NODE_UNREACHABLE, silent), what="the silent node is named"
    )
    leaving = f"pod {name} leaves node {node} and will be replaced: Taint manager"
    await until(lambda: says(names.REASON_POD_DISRUPTED, leaving), what="its pod has to leave")
    await until(lambda: back(before["prefill", 0], node), what="the group is on other nodes")
    after = await groups()
    assert after["prefill", 1].uids == before["prefill", 1].uids
    assert after["decode", 0].uids == before["decode", 0].uids
    (told,) = (await impatient.status())["roles"][0]["groups"]
    assert (told["group"], told["restarts"]) == (0, 1)
    assert told["reason"].startswith(f"pod {name} is being deleted: Taint manager")


async def test_a_group_leaves_a_node_that_was_removed(impatient, groups, nodes, until, back):
    before = await groups()
    node = before["decode", 0].pods[0].spec.node_name
    await nodes.remove(node)
    await until(
        lambda: back(before["decode", 0], node),
        what="the group is on other nodes",
        within_s=ORPHANS_S,
    )
    after = await groups()
    assert after["prefill", 0].uids == before["prefill", 0].uids
    assert after["prefill", 1].uids == before["prefill", 1].uids
