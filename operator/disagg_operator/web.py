"""The operator's own HTTP port: /healthz and /readyz for the kubelet, /metrics for Prometheus."""

from aiohttp import web

from disagg_operator.health import Health
from disagg_operator.metrics import CONTENT_TYPE, exposition
from disagg_operator.runtime import Runtime


async def serve(runtime: Runtime, *, port: int) -> web.AppRunner:
    app, health = web.Application(), Health(runtime)

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(health.complaints())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(health.shortcomings())

    async def metrics(_: web.Request) -> web.Response:
        runtime.metrics.resources = len(runtime.wakeups)
        runtime.metrics.queued = runtime.wakeups.waiting
        runtime.metrics.pollers = runtime.feed.pollers
        runtime.metrics.refused_watches = len(runtime.watches.refusals)
        text = exposition(runtime.metrics)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    routes = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    app.add_routes([web.get(path, handler) for path, handler in routes.items()])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _verdict(lines: list[str]) -> web.Response:
    if lines:
        return web.Response(status=503, text="\n".join(lines) + "\n")
    return web.Response(text="ok\n")
