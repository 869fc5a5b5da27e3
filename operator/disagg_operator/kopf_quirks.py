"""What no setting of kopf leads to: a start with many objects, and an end without one that stays."""

import asyncio
from typing import Final

from kopf._cogs.aiokits import aiotoggles

CANCEL_AGAIN_S: Final = 5.0
_WATCHER: Final = "watcher for "  # the name of kopf's task of one kind


class QuietToggles(aiotoggles.ToggleSet):
    """Wakes who waits for it when its answer changes.

    kopf handles nothing before its indices hold every object of the first lists. It keeps a toggle
    for each in one set, and wakes all who wait for the set whenever one is dropped: with the 13,000
    objects of 1,000 deployments it was still at it after five minutes, on a full core.
    """

    async def make_toggle(
        self,
        value: bool = False,  # noqa: FBT001, FBT002  (kopf's own signature)
        /,
        *,
        name: str | None = None,
    ) -> aiotoggles.Toggle:
        toggle = aiotoggles.Toggle(value, name=name, condition=self._condition)
        async with self._condition:
            before = self.is_on()
            self._toggles.add(toggle)
            self._notify_unless(before=before)
        return toggle

    async def drop_toggle(self, toggle: aiotoggles.Toggle) -> None:
        async with self._condition:
            before = self.is_on()
            self._toggles.discard(toggle)
            self._notify_unless(before=before)

    def _notify_unless(self, *, before: bool) -> None:
        if self.is_on() != before:
            self._condition.notify_all()


def install_quiet_toggles() -> None:
    """For operators that are started from now on."""
    aiotoggles.ToggleSet = QuietToggles  # type: ignore[misc]


async def cancel_again(*, every_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel a watcher once more that was cancelled and is still there.

    As it ends, by an error too, kopf cancels each watcher once and waits for it without limit. One
    whose cancellation meets the end of its own request loses it, and the process would stay, with
    the Lease and without a watch: seen in two of five runs.
    """
    before: set[asyncio.Task[object]] = set()
    while True:
        await asyncio.sleep(every_s)
        cancelled = {
            task
            for task in asyncio.all_tasks()
            if task.get_name().startswith(_WATCHER) and task.cancelling()
        }
        for task in cancelled & before:
            task.cancel()
        before = cancelled
