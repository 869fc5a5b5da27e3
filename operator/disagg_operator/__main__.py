"""`python -m disagg_operator`: one process, one event loop, everything by environment."""

import asyncio
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import kopf

from disagg_operator import collector, kopf_quirks, names
from disagg_operator.credentials import client_configuration
from disagg_operator.errors import (
    ApiForbiddenError,
    ApiUnavailableError,
    LeadershipLostError,
    SettingsError,
)
from disagg_operator.gateway import Gateway
from disagg_operator.handlers import kopf_settings, registry_of
from disagg_operator.leadership import Election
from disagg_operator.metrics import Metrics
from disagg_operator.reports import ReportFeed
from disagg_operator.root_key import root_key
from disagg_operator.router_feed import RouterFeed
from disagg_operator.runtime import Runtime, Wakeups
from disagg_operator.settings import Settings, settings_from
from disagg_operator.store import WATCHED, Store
from disagg_operator.watches import Watches
from disagg_operator.web import serve

CRD_RECHECK_S = 2.0
logger = logging.getLogger("disagg_operator")


def main() -> int:
    try:
        settings = settings_from(os.environ)
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
        )
        if settings.log_level > logging.DEBUG:
            # Kopf tells of every watch event; what a pass does is told by our own loop.
            logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        collector.install()
        asyncio.run(run(settings))
    except LeadershipLostError as error:
        logger.error("%s; ending, so that this process starts anew as a candidate", error)  # noqa: TRY400 - the cause is in the message
        return 3
    except SettingsError as error:
        print(f"disagg-operator: {error}", file=sys.stderr)  # noqa: T201 - no log to trust yet
        return 2
    return 0


async def run(settings: Settings) -> None:
    """Until SIGTERM, or until another process may lead."""
    async with assembled(settings) as runtime:
        if settings.lease is None:
            runtime.metrics.leads = True
            await operate(runtime)
        else:
            await lead(runtime, lease=settings.lease)


async def lead(
    runtime: Runtime,
    *,
    lease: tuple[str, str],
    stop: threading.Event | None = None,
    ready: threading.Event | None = None,
) -> None:
    """Operate while the Lease is held; LeadershipLostError when it is lost."""
    namespace, name = lease
    # A gateway of its own: a renewal never queues behind the writes of a large fleet.
    keeper = Gateway(
        configuration=await client_configuration(), metrics=runtime.metrics, attempts=1
    )
    async with keeper:
        identity = f"{runtime.instance}_{secrets.token_hex(4)}"
        election = Election(keeper=keeper, namespace=namespace, name=name, identity=identity)
        await election.win()
        runtime.metrics.leads = True
        runtime.gateway.permitted = election.leads
        holding = asyncio.create_task(election.hold())
        working = asyncio.create_task(operate(runtime, stop=stop, ready=ready))
        try:
            await asyncio.wait({holding, working}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost = not working.done()
            runtime.gateway.permitted = lambda: False
            runtime.metrics.leads = False
            holding.cancel()
            working.cancel()
            # Here kopf stops all loops, and what loses its cancellation is cancelled again. As the
            # process ends everything is cancelled just once, and the process would stay.
            await asyncio.gather(holding, working, return_exceptions=True)
        if lost:
            raise LeadershipLostError(f"Lease {namespace}/{name} was not renewed in time")
        await election.release()
        await working


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Runtime]:
    """Everything but kopf: clients, report feed, HTTP port."""
    metrics, wakeups = Metrics(), Wakeups()
    gateway = Gateway(configuration=await client_configuration(), metrics=metrics)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with gateway, session:
        store = Store(wake=wakeups.wake)
        watches = Watches(
            gateway=gateway, store=store, kinds=WATCHED, namespaces=settings.namespaces or (None,)
        )
        runtime = Runtime(
            settings=settings,
            gateway=gateway,
            feed=ReportFeed(session=session, wake=wakeups.wake),
            routers=RouterFeed(session=session, wake=wakeups.wake),
            wakeups=wakeups,
            store=store,
            watches=watches,
            metrics=metrics,
            instance=socket.gethostname(),
        )
        web = await serve(runtime, port=settings.http_port)
        try:
            yield runtime
        finally:
            await runtime.feed.close()
            await runtime.routers.close()
            await web.cleanup()


async def operate(
    runtime: Runtime,
    *,
    stop: threading.Event | None = None,
    ready: threading.Event | None = None,
) -> None:
    """Until SIGTERM, or until `stop` is set; `ready` is set once kopf watches. Passes begin when our
    own watches have listed everything.
    """
    await _until_served(runtime.gateway)
    runtime = await _rooted(runtime)
    namespaces = runtime.settings.namespaces
    async with asyncio.TaskGroup() as group:
        # Begun before kopf, which gives tasks that it does not know five seconds when it ends.
        beside = [
            *runtime.watches.begin(group),
            group.create_task(kopf_quirks.cancel_again()),
        ]
        await kopf.operator(
            registry=registry_of(runtime),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )
        for task in beside:
            task.cancel()


async def _rooted(runtime: Runtime) -> Runtime:
    if runtime.settings.root_key is None:
        logger.warning(
            "DISAGG_ROOT_KEY is not set: keys are made anew whenever this process starts"
        )
        return runtime
    namespace, name = runtime.settings.root_key
    try:
        root = await root_key(runtime.gateway, namespace=namespace, name=name)
    except ApiForbiddenError as error:
        raise SettingsError(
            f"the root key cannot be had: {error}; the operator needs create on Secrets of"
            f" {namespace}, and get on {name}, as the chart's Role has them"
        ) from error
    return replace(runtime, root=root)


async def _until_served(gateway: Gateway) -> None:
    """A chart installs the CRDs and the operator at once; a CRD takes a moment to be served."""
    while not await _serves(gateway):
        kinds = f"{names.PLURAL} and {names.SCALER_PLURAL}"
        logger.info("waiting for the CRDs %s of %s to be served", kinds, names.GROUP)
        await asyncio.sleep(CRD_RECHECK_S)


async def _serves(gateway: Gateway) -> bool:
    try:
        return await gateway.serves_resource()
    except ApiUnavailableError as error:
        logger.warning("%s", error)
        return False


if __name__ == "__main__":
    sys.exit(main())
