"""A deleted resource leaves nothing behind."""

import pytest
from kubernetes.aio import client

pytestmark = pytest.mark.api


async def test_resource_deleted_while_it_is_created_leaves_nothing(
    resource, operator, until, collected
):
    await resource.apply()

    async def begun():
        return len(await resource.children()) >= 1

    await until(begun, what="a first child")
    await resource.delete()

    async def nothing():
        return not await resource.children()

    await collected(nothing, what="nothing is left")
    with pytest.raises(client.ApiException, match="404"):
        await resource.body()


async def test_nothing_is_left_of_a_scaled_resource(scaled, collected):
    await scaled.delete()

    async def nothing():
        return not await scaled.children()

    await collected(nothing, what="nothing is left")
