"""What the operator mends of kopf."""

import asyncio
import itertools

import kopf

from disagg_operator import kopf_quirks
from disagg_operator.handlers import kopf_settings


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


def test_kopf_asks_on_without_end_and_at_least_every_ten_seconds():
    pauses = kopf_settings().networking.error_backoffs
    for _ in range(2):  # each request begins anew
        asked = list(itertools.islice(pauses, 1000))
        assert len(asked) == 1000
        assert asked[0] == 1
        assert max(asked) == 10
