"""kopf's set of toggles, as the operator has it."""

import asyncio

from kopf._cogs.aiokits import aiotoggles

from disagg_operator import kopf_toggles


async def test_waiting_for_many_objects_takes_a_step_for_each_not_for_each_pair():
    """As kopf's workers do: each drops its own toggle and waits for all others."""
    kopf_toggles.install()
    steps = 0

    def everything(values):
        nonlocal steps
        steps += 1
        return all(values)

    number = 500
    toggles = aiotoggles.ToggleSet(everything)
    blockers = [await toggles.make_toggle() for _ in range(number)]
    passed = []

    async def worker(own):
        await toggles.drop_toggle(own)
        await toggles.wait_for(True)
        passed.append(own)

    waiting = []
    for own in blockers[1:]:  # one after another, as their objects come
        waiting.append(asyncio.create_task(worker(own)))
        await asyncio.sleep(0)
    assert not passed, "one object has not been looked at"
    await toggles.drop_toggle(blockers[0])
    await asyncio.gather(*waiting)
    assert len(passed) == number - 1
    assert steps < 10 * number


async def test_a_toggle_that_comes_later_is_waited_for():
    toggles = kopf_toggles.QuietToggles(all)
    await toggles.wait_for(True)
    later = await toggles.make_toggle()
    off = asyncio.create_task(toggles.wait_for(False))
    on = asyncio.create_task(toggles.wait_for(True))
    await off
    assert not on.done()
    await toggles.drop_toggle(later)
    await on
