"""What no setting of kopf leads to: light bodies, and an end for certain."""

import asyncio
from typing import Final

import kopf

CANCEL_AGAIN_S: Final = 5.0
_WATCHER: Final = "watcher for "  # the name of kopf's task of one kind


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


def lighten(body: kopf.Body) -> None:
    """Kopf keeps the newest body of every resource, and looks at its metadata only; the rest, most
    of it managedFields, was 0.1 MB for each of 200 resources.
    """
    body["metadata"].pop("managedFields", None)
    for part in ("spec", "status"):
        body.get(part, {}).clear()
