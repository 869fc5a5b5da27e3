"""Registration with kopf, and nothing else: indexes, wake-ups, one daemon per resource.

No handler of kopf's change detection is used, nor its patches: both lose updates (kopf 1072, 1178,
642). The indexes hold small records; an event only wakes the loop of the resource it belongs to.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import kopf

from disagg_operator import names
from disagg_operator.credentials import client_configuration, kopf_credentials
from disagg_operator.kinds import Kind, ObjectReference
from disagg_operator.loop import ResourceLoop, Snapshot
from disagg_operator.observe import (
    guard_record,
    owner_key,
    pod_record,
    router_record,
    scaler_record,
    service_record,
)
from disagg_operator.reports import Owner
from disagg_operator.runtime import Runtime

# A pass in flight may finish its request; then the daemon is cancelled, so that a deletion or a
# shutdown never waits for us.
STOP_GRACE_S = 10.0
# The server ends every watch after this and kopf resumes it where it ended: so one that is alive is
# never silent for longer, and a dead one is told from a quiet one sooner than by bookmarks (60 s).
SERVER_TIMEOUT_S = 30
INACTIVITY_S = 40.0
_PODS = ("", "v1", "pods")
_SERVICES = ("", "v1", "services")
_DEPLOYMENTS = ("apps", "v1", "deployments")
_BUDGETS = ("policy", "v1", "poddisruptionbudgets")
_POLICIES = ("networking.k8s.io", "v1", "networkpolicies")
_SCALERS = (names.GROUP, names.VERSION, names.SCALER_PLURAL)
_RESOURCE = (names.GROUP, names.VERSION, names.PLURAL)
_CHILDREN = {
    _PODS: Kind.POD,
    _SERVICES: Kind.SERVICE,
    _DEPLOYMENTS: Kind.DEPLOYMENT,
    _BUDGETS: Kind.DISRUPTION_BUDGET,
    _POLICIES: Kind.NETWORK_POLICY,
    _SCALERS: Kind.SCALER,
}
WATCHED = (*_CHILDREN.values(), Kind.RESOURCE)


def registry_of(runtime: Runtime) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    _register_startup(registry)
    _register_index(registry, _PODS, "pods", pod_record)
    _register_index(registry, _SERVICES, "services", service_record)
    _register_index(registry, _DEPLOYMENTS, "routers", router_record)
    _register_index(registry, _SCALERS, "scalers", scaler_record)
    for source, kind in (
        (_BUDGETS, Kind.DISRUPTION_BUDGET),
        (_POLICIES, Kind.NETWORK_POLICY),
    ):
        _register_index(registry, source, source[2], partial(guard_record, kind=kind))
    _register_wakeups(registry, runtime)
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


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Only our own children are listed and watched; other filters of kopf act after the transfer.
    for group, version, plural in _CHILDREN:
        settings.watching.label_selectors[group, version, plural] = names.MANAGED_SELECTOR
    settings.watching.connect_timeout = 5
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.inactivity_timeout = INACTIVITY_S
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 5
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


def _register_index(
    registry: kopf.OperatorRegistry,
    kind: tuple[str, str, str],
    index: str,
    record: Callable[[Mapping[str, Any]], Any],
) -> None:
    @kopf.index(*kind, id=index, registry=registry)
    async def keep(body: kopf.Body, **_: Any) -> dict[Owner, Any] | None:
        owner = owner_key(body)
        found = None if owner is None else {owner: record(body)}
        _lighten(body, "spec", "status")
        return found


def _lighten(body: kopf.Body, *needless: str) -> None:
    """kopf holds every object of its first lists whole until the last one is indexed, and a body as
    long as its worker: with 600 deployments that was the larger half of 550 MB.
    """
    body["metadata"].pop("managedFields", None)
    for part in needless:
        if isinstance(body.get(part), dict):
            body[part].clear()


def _register_wakeups(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    async def child_changed(
        body: kopf.Body, event: kopf.RawEvent, param: Any = None, **_: Any
    ) -> None:
        owner = owner_key(body)
        runtime.census.event(param, event["type"], body, owner)
        if owner is not None:
            runtime.wakeups.wake(owner)

    async def resource_changed(body: kopf.Body, event: kopf.RawEvent, **_: Any) -> None:
        metadata = body["metadata"]
        owner = (metadata["namespace"], metadata["name"])
        runtime.census.event(Kind.RESOURCE, event["type"], body, owner)
        _lighten(body)
        runtime.wakeups.wake(owner)

    for source, kind in _CHILDREN.items():
        handler = kopf.on.event(*source, id=f"{source[2]}-changed", param=kind, registry=registry)
        handler(child_changed)
    kopf.on.event(*_RESOURCE, id="resource-changed", registry=registry)(resource_changed)


def _register_daemon(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    @kopf.daemon(*_RESOURCE, id="reconcile", registry=registry, cancellation_timeout=STOP_GRACE_S)
    async def reconcile(body: kopf.Body, stopped: kopf.DaemonStopped, **kwargs: Any) -> None:
        metadata = body["metadata"]
        resource = ObjectReference(
            namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
        )

        def indexed(*indices: str) -> Iterator[Any]:
            for index in indices:
                for record in kwargs[index].get(resource.owner, ()):
                    if record.uid not in runtime.census.gone:
                        yield record

        def snapshot() -> Snapshot:
            return Snapshot(
                body=body,
                pods=tuple(indexed("pods")),
                services=tuple(indexed("services")),
                routers=tuple(indexed("routers")),
                guards=tuple(indexed(_BUDGETS[2], _POLICIES[2])),
                scalers=tuple(indexed("scalers")),
            )

        def deleted() -> bool:
            unseen = resource.uid in runtime.census.gone  # its finalizer was taken off by hand
            return bool(stopped) or unseen or bool(body["metadata"].get("deletionTimestamp"))

        loop = ResourceLoop(runtime=runtime, resource=resource, snapshot=snapshot, stopped=deleted)
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
