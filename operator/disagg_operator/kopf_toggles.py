"""kopf's start with many objects, without a wakeup of every one for every other.

kopf handles nothing before its indices hold every object of the first lists. It keeps a toggle for
each object in one set, and wakes all who wait for the set whenever one is dropped: with the 13,000
objects of 1,000 deployments the operator was still at it after five minutes, on a full core. The
set below wakes them when its answer changes. Nothing in kopf's settings leads there.
"""

from kopf._cogs.aiokits import aiotoggles


class QuietToggles(aiotoggles.ToggleSet):
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


def install() -> None:
    """For operators that are started from now on."""
    aiotoggles.ToggleSet = QuietToggles  # type: ignore[misc]
