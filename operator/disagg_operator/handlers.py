"""Registration with kopf, and nothing else: one daemon per resource, and its finalizer.

No handler of kopf's change detection is used, nor its patches: both lose updates (kopf 1072, 1178,
642). Its indices are not used either: they hold whole lists in memory while they are filled, and
keep what was deleted while nothing could be watched. What the loops look at is in the store.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from disagg_operator import gateway, kopf_quirks, names
from disagg_operator.credentials import client_configuration, kopf_credentials
from disagg_operator.kinds import ObjectReference
from disagg_operator.loop import ResourceLoop
from disagg_operator.runtime import Runtime
from disagg_operator.sight import Sight

# A pass in flight may finish its request; then the daemon is cancelled, so that a deletion or a
# shutdown never waits for us.
STOP_GRACE_S = 10.0
_RESOURCE = (names.GROUP, names.VERSION, names.PLURAL)


def registry_of(runtime: Runtime) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    _register_startup(registry)
    _register_diet(registry)
    _register_daemon(registry, runtime)
    return registry


class NoDifferences(kopf.DiffBaseStorage):
    """Kopf copies every object at every event to find what changed, a fifth of our processor time
    with a hundred resources at once; we look at whole objects and ask for no difference.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return kopf.BodyEssence()

    def store(self, **_: Any) -> None:
        pass


class Steadily:
    """The pauses between kopf's attempts, seconds, without end. A watch that gives up ends the
    operator: for all namespaces, where a single one refuses it.
    """

    def __iter__(self) -> Iterator[float]:
        yield from (1, 2, 5)
        yield from itertools.repeat(10)


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.connect_timeout = gateway.CONNECT_S
    settings.watching.server_timeout = gateway.WATCH_S
    settings.watching.inactivity_timeout = gateway.SILENT_S
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Steadily()
    # Watching namespaces and CRDs would need cluster-wide rights; the CRD is awaited at start.
    settings.scanning.disabled = True
    # Another operator's peering object must not pause this one.
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.finalizer = names.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix=names.GROUP, v1=False
    )
    settings.persistence.diffbase_storage = NoDifferences()
    settings.background.cancellation_polling = 5
    return settings


def _register_startup(registry: kopf.OperatorRegistry) -> None:
    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await kopf_credentials(await client_configuration())


def _register_diet(registry: kopf.OperatorRegistry) -> None:
    @kopf.on.event(*_RESOURCE, id="lighten", registry=registry)
    async def lighten(body: kopf.Body, **_: Any) -> None:
        kopf_quirks.lighten(body)


def _register_daemon(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    @kopf.daemon(*_RESOURCE, id="reconcile", registry=registry, cancellation_timeout=STOP_GRACE_S)
    async def reconcile(body: kopf.Body, stopped: kopf.DaemonStopped, **_: Any) -> None:
        metadata = body["metadata"]
        resource = ObjectReference(
            namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
        )
        sight = Sight(
            store=runtime.store,
            resource=resource,
            complete=lambda: runtime.watches.complete(resource.namespace),
        )
        loop = ResourceLoop(
            runtime=runtime,
            resource=resource,
            snapshot=sight.snapshot,
            stopped=lambda: bool(stopped) or sight.lost(),
        )
        await _until_stopped(loop, stopped, lambda: runtime.wakeups.wake(resource.owner))


async def _until_stopped(
    loop: ResourceLoop, stopped: kopf.DaemonStopped, wake: Callable[[], None]
) -> None:
    async def relay() -> None:
        await stopped.wait()
        wake()

    relaying = asyncio.create_task(relay())
    try:
        await loop.run()
    finally:
        relaying.cancel()
