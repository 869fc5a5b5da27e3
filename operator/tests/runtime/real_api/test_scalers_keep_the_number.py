"""A role that is scaled from outside follows its scaler."""

import pytest
from kubernetes.aio import client

from disagg_operator import names

pytestmark = pytest.mark.api


async def test_the_scale_subresource_scales_a_role(scaled, until):
    await scaled.scale_decode(3)
    await until(lambda: scaled.decode_is("3/3"), what="three decode groups")

    async def told():
        return (await scaled.decode_scale())["status"].get("replicas") == 3

    await until(told, what="the scaler's status")
    selector = (await scaled.decode_scale())["status"]["selector"]
    pods = await scaled.clients.core.list_namespaced_pod(scaled.namespace, label_selector=selector)
    assert len(pods.items) == 3
    await scaled.scale_decode(1)
    await until(lambda: scaled.decode_is("1/1"), what="one decode group")


async def test_a_scaler_asked_for_nothing_refuses_by_name(scaled):
    with pytest.raises(client.ApiException, match="should be greater than or equal to 1"):
        await scaled.scale_decode(0)


async def test_a_scaled_number_outlives_edits_and_the_operator(
    resource, kubelet, namespace, until, running
):
    with running(namespace):
        await resource.apply(roles={"decode": {"scaling": {"mode": "External"}}})
        await until(resource.is_ready, what="Ready")
        await resource.scale_decode(2)
        await until(lambda: resource.decode_is("2/2"), what="two decode groups")
    await resource.patch({"spec": {"roles": {"decode": {"replicas": 4}}}})
    with running(namespace):
        await until(lambda: resource.decode_is("2/2"), what="still two, for the new generation")
    assert (await resource.decode_scale())["spec"]["replicas"] == 2


async def test_a_scaler_goes_when_the_number_is_fixed_again(scaled, until):
    await scaled.patch({"spec": {"roles": {"decode": {"scaling": {"mode": "Static"}}}}})

    async def without():
        return "scaler" not in {kind for kind, _, _ in await scaled.children()}

    await until(without, what="no scaler")
    await until(lambda: scaled.decode_is("1/1"), what="one decode group")


async def test_a_horizontal_pod_autoscaler_is_followed(scaled, collected):
    """Kubernetes' own controller: with no metrics to go by it keeps the number within its bounds,
    by the subresource that it always uses. It looks every 15 s, and for new kinds every 30 s.
    """
    autoscaling = client.AutoscalingV2Api(scaled.clients.core.api_client)
    decode = {
        "apiVersion": names.API_VERSION,
        "kind": names.SCALER_KIND,
        "name": f"{scaled.name}-decode",
    }
    bounds = {"minReplicas": 3, "maxReplicas": 4}
    await autoscaling.create_namespaced_horizontal_pod_autoscaler(
        scaled.namespace,
        {"metadata": {"name": "decode"}, "spec": {"scaleTargetRef": decode, **bounds}},
    )

    def groups(number):
        async def counted():  # not Ready: nobody answers for the agents of this test for so long
            return (await scaled.status())["decode"] == f"{number}/{number}"

        return counted

    await collected(groups(3), what="three groups, the least")
    await autoscaling.patch_namespaced_horizontal_pod_autoscaler(
        "decode", scaled.namespace, {"spec": {"minReplicas": 1, "maxReplicas": 2}}
    )
    await collected(groups(2), what="two groups, the most")
