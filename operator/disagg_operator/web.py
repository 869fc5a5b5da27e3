"""The operator's own HTTP port: /healthz for the kubelet, /metrics for Prometheus."""

from aiohttp import web

from disagg_operator.health import Health
from disagg_operator.metrics import CONTENT_TYPE, exposition
from disagg_operator.runtime import Runtime


async def serve(runtime: Runtime, *, port: int) -> web.AppRunner:
    app, health = web.Application(), Health(runtime)

    async def healthz(_: web.Request) -> web.Response:
        complaints = health.complaints()
        if complaints:
            return web.Response(status=503, text="\n".join(complaints) + "\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        runtime.metrics.resources = len(runtime.wakeups)
        runtime.metrics.queued = runtime.wakeups.waiting
        runtime.metrics.pollers = runtime.feed.pollers
        text = exposition(runtime.metrics)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
