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


async def test_a_change_of_one_role_makes_its_pods_anew_and_no_others(ready, until, collected):
    before, revision = await ready.agents(), (await ready.status())["currentRevision"]
    variable = [{"name": "TUNE", "value": "1"}]
    await ready.patch({"spec": {"roles": {"decode": {"env": variable}}}})

    async def anew():
        decode = (await ready.agents()).get("decode")
        replaced = decode is not None and decode.metadata.uid != before["decode"].metadata.uid
        return replaced and await ready.is_ready()

    await until(anew, what="another decode pod, and Ready")
    assert (await ready.status())["currentRevision"] == revision

    async def alone():
        pods = [name for kind, name, _ in await ready.children() if kind == "pod"]
        return len([name for name in pods if "-decode-" in name]) == 1

    await collected(alone, what="the further group is gone")
    after = await ready.agents()
    assert after["prefill"].metadata.uid == before["prefill"].metadata.uid
    assert after["decode"].metadata.name == before["decode"].metadata.name
