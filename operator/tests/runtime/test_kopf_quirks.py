"""What the operator mends of kopf."""

import asyncio

import kopf

from disagg_operator import kopf_quirks


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


def test_a_body_is_light_in_kopfs_hands_too():
    raw = {
        "metadata": {"name": "a", "managedFields": [{"manager": "us"}]},
        "spec": {"model": {"source": "m"}},
    }
    kopf_quirks.lighten(kopf.Body(raw))
    assert raw == {"metadata": {"name": "a"}, "spec": {}}
