"""Groups of several pods under Volcano, against a server that serves its PodGroups or does not."""

import contextlib
from collections import Counter

import pytest
from kubernetes.aio import client

from disagg_operator.kinds import Kind

pytestmark = [pytest.mark.api, pytest.mark.timeout(240)]

# The operator asks again with growing pauses, and a server needs seconds to serve a new kind.
NOTICED_S = 60.0
GROUP, VERSION = Kind.POD_GROUP.api_version.split("/")
PLURAL = Kind.POD_GROUP.plural
MEMBER_OF = "scheduling.k8s.io/group-name"

# The fields of Volcano's own that are about placing; any other is dropped by the server.
SPEC = {
    "minMember": {"type": "integer", "format": "int32"},
    "minTaskMember": {"type": "object", "additionalProperties": {"type": "integer"}},
    "minResources": {"type": "object", "additionalProperties": {"type": "string"}},
    "priorityClassName": {"type": "string"},
    "queue": {"type": "string", "default": "default"},
}


@pytest.fixture
async def volcano(clients):
    """Serves PodGroups from the moment it is asked to."""
    extensions = client.ApiextensionsV1Api(clients.core.api_client)
    name = f"{PLURAL}.{GROUP}"
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": SPEC}},
            }
        },
    }

    async def serve():
        await extensions.create_custom_resource_definition(
            {
                "metadata": {"name": name},
                "spec": {
                    "group": GROUP,
                    "scope": "Namespaced",
                    "names": {"plural": PLURAL, "kind": Kind.POD_GROUP.kind},
                    "versions": [version],
                },
            }
        )

    yield serve
    with contextlib.suppress(client.ApiException):
        await extensions.delete_custom_resource_definition(name)


@pytest.fixture
def example():
    return "deepseek-v3.2-h200-2x8.yaml"


async def test_pods_wait_for_volcano_and_come_with_it_each_group_in_its_pod_group(
    volcano, resource, kubelet, operator, until, collected
):
    async def told():
        return (await resource.condition("Ready")).get("reason") == "GangSchedulerMissing"

    async def all_made():
        return len(await resource.pods()) == 6

    async def pod_groups():
        found = await resource.clients.custom.list_namespaced_custom_object(
            GROUP, VERSION, resource.namespace, PLURAL
        )
        return {item["metadata"]["name"]: item for item in found["items"]}

    async def nothing():
        return not await pod_groups()

    await resource.apply(scheduling={"gang": "Volcano", "queue": "team-a"})
    await until(told, what="it says that Volcano is missing")
    assert not await resource.pods()

    await volcano()
    await until(all_made, what="every pod of three groups", within_s=NOTICED_S)
    groups = await pod_groups()
    placed = {"minMember": 2, "queue": "team-a"}
    assert [item["spec"] for item in groups.values()] == [placed] * 3
    pods = await resource.pods()
    assert Counter(pod.metadata.annotations[MEMBER_OF] for pod in pods) == Counter(
        dict.fromkeys(groups, 2)
    )
    assert {pod.spec.scheduler_name for pod in pods} == {"volcano"}

    await resource.delete()
    await collected(nothing, what="no PodGroup is left")
