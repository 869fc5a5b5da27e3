"""What the operator mends of kopf."""

import asyncio

from kopf._cogs.aiokits import aiotoggles

from disagg_operator import kopf_quirks


async def test_waiting_for_many_objects_takes_a_step_for_each_not_for_each_pair():
    """As kopf's workers do: each drops its own toggle and waits for all others."""
    kopf_quirks.install_quiet_toggles()
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
    toggles = kopf_quirks.QuietToggles(all)
    await toggles.wait_for(True)
    later = await toggles.make_toggle()
    off = asyncio.create_task(toggles.wait_for(False))
    on = asyncio.create_task(toggles.wait_for(True))
    await off
    assert not on.done()
    await toggles.drop_toggle(later)
    await on


async def test_a_watcher_that_loses_its_cancellation_is_cancelled_again():
    lost, other = asyncio.Event(), asyncio.Event()

    async def watch():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.set()
        await asyncio.Event().wait()

    watcher = asyncio.create_task(watch(), name="watcher for pods")
    sound = asyncio.create_task(other.wait(), name="watcher for services")
    mending = asyncio.create_task(kopf_quirks.cancel_again(every_s=0.01))
    await asyncio.sleep(0)
    watcher.cancel()
    await asyncio.wait_for(lost.wait(), 10)
    await asyncio.wait([watcher], timeout=10)
    assert watcher.cancelled()
    assert not sound.done()
    for task in (sound, mending):
        task.cancel()
