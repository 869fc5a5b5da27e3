"""A role's number of groups follows its number in the spec, and takes nothing else along."""

import pytest

pytestmark = pytest.mark.api


async def test_a_role_grows_and_shrinks_and_leaves_the_other_groups_alone(
    resource, nodes, operator, groups, until
):
    await nodes.add(8)
    await resource.apply()
    await until(resource.is_ready, what="Ready")
    before = await groups()

    async def are(*wanted):
        found = await groups()
        whole = all(group.ready for group in found.values())
        return set(found) == set(wanted) and whole and await resource.is_ready()

    prefill = [("prefill", 0), ("prefill", 1)]
    await resource.patch({"spec": {"roles": {"decode": {"replicas": 2}}}})
    await until(lambda: are(*prefill, ("decode", 0), ("decode", 1)), what="two decode groups")
    grown = await groups()
    assert all(grown[key].uids == before[key].uids for key in before)
    await resource.patch({"spec": {"roles": {"decode": {"replicas": 1}}}})
    await until(lambda: are(*prefill, ("decode", 0)), what="the last decode group goes")
    await resource.patch({"spec": {"roles": {"prefill": {"replicas": 1}}}})
    await until(lambda: are(prefill[0], ("decode", 0)), what="the last prefill group goes")
    left = await groups()
    assert all(left[key].uids == before[key].uids for key in left)
