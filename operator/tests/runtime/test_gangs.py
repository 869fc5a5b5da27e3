"""Groups of several pods that Volcano places whole: their PodGroups, and when there is no Volcano."""

import pytest

from disagg_operator.errors import ApiNotFoundError, GangNotServedError
from disagg_operator.execute import Execution
from disagg_operator.expectations import Expectations
from disagg_operator.intents import CreatePod, EnsureGang
from disagg_operator.kinds import Kind
from disagg_operator.loop import _error_finding

SIZE = {"gpusPerNode": 8, "nodesPerReplica": 2, "parallelism": {"tp": 16}}
ONE = {"gpusPerNode": 8, "parallelism": {"tp": 8}}


@pytest.fixture
def gang(deployment):
    def make(**scheduling):
        return deployment(
            engine={"type": "sglang", "image": "sglang:1"},
            hardware={"profile": "h200"},
            roles={"prefill": ONE, "decode": {**SIZE, "replicas": 2}},
            scheduling={"gang": "Volcano", **scheduling},
        )

    return make


def test_each_group_of_several_pods_has_a_pod_group_before_its_pods(cluster, gang):
    plan = cluster.decide(gang(queue="team-a"))
    kinds = [type(intent) for intent in plan.intents]
    assert kinds.count(EnsureGang) == 2, "prefill groups have one pod each"
    assert kinds.index(EnsureGang) < kinds.index(CreatePod)
    cluster.converge(gang(queue="team-a"))
    groups = cluster.of(Kind.POD_GROUP)
    assert {body["spec"]["minMember"] for body in groups.values()} == {2}
    assert {body["spec"]["queue"] for body in groups.values()} == {"team-a"}
    pods = cluster.of(Kind.POD)
    assert {pod["spec"]["schedulerName"] for pod in pods.values()} == {"volcano"}
    for name, pod in pods.items():
        told = pod["metadata"].get("annotations", {}).get("scheduling.k8s.io/group-name")
        assert told == (name.rpartition("-")[0] if "-decode-" in name else None)


def test_placed_groups_are_not_asked_for_again(cluster, gang):
    cluster.converge(gang())
    cluster.gangs = frozenset()
    asked = cluster.decide(gang()).intents
    assert {type(intent) for intent in asked} == {EnsureGang}, "pods wait, for all we know"
    for pod in cluster.of(Kind.POD).values():
        pod["spec"]["nodeName"] = "node-1"
    assert cluster.decide(gang()).intents == ()


def test_without_a_gang_nothing_of_volcano_is_said(cluster, deployment):
    cluster.converge(deployment())
    assert not cluster.of(Kind.POD_GROUP)
    assert not [pod for pod in cluster.of(Kind.POD).values() if "schedulerName" in pod["spec"]]


class ServerWithoutVolcano:
    def __init__(self):
        self.created = []

    async def apply(self, kind, body):
        return {**body, "metadata": {**body["metadata"], "uid": "uid-of-it"}}

    async def create(self, kind, body):
        if kind is Kind.POD_GROUP:
            raise ApiNotFoundError("404 page not found", code=404)
        self.created.append(kind)
        return {**body, "metadata": {**body["metadata"], "uid": "uid-of-it"}}


async def test_where_volcano_is_missing_it_is_told_by_name_and_no_pod_is_made(cluster, gang):
    writer = ServerWithoutVolcano()
    outcome = await Execution(
        writer=writer,
        deployment=gang(),
        observed=cluster.observed(gang()),
        expectations=Expectations(),
        clock=lambda: 0.0,
        root=cluster.root,
        stopped=lambda: False,
    ).run(cluster.decide(gang()))
    assert Kind.POD not in writer.created
    assert {type(error) for error in outcome.errors} == {GangNotServedError}
    finding = _error_finding(outcome.errors)
    assert finding.reason == "GangSchedulerMissing"
    for word in ("spec.scheduling.gang", "PodGroup", "scheduling.volcano.sh/v1beta1"):
        assert word in finding.message
