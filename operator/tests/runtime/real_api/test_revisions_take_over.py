"""A changed spec is served by another revision."""

import pytest

pytestmark = pytest.mark.api


async def test_new_revision_takes_over_and_the_old_one_goes(ready, until, collected):
    before = await ready.status()
    await ready.patch({"spec": {"engine": {"args": ["--seed", "7"]}}})

    async def switched():
        status = await ready.status()
        return status["currentRevision"] != before["currentRevision"] and await ready.is_ready()

    await until(switched, what="the new revision serves")

    async def only_new():
        return all(before["currentRevision"] not in name for _, name, _ in await ready.children())

    await collected(only_new, what="the old revision is gone")
