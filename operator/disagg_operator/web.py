"""The operator's own HTTP port: /healthz for the kubelet, /metrics for Prometheus."""

from aiohttp import web

from disagg_operator.metrics import CONTENT_TYPE, exposition
from disagg_operator.runtime import Runtime

# Longer than all attempts of one request together: a pass this old hangs.
STUCK_AFTER_S = 300.0


async def serve(runtime: Runtime, *, port: int) -> web.AppRunner:
    app = web.Application()

    async def healthz(_: web.Request) -> web.Response:
        stuck = stuck_passes(runtime)
        if stuck:
            text = f"passes that do not end: {', '.join(stuck)}\n"
            return web.Response(status=503, text=text)
        if runtime.census.stuck:
            text = f"watches that bring nothing new: {', '.join(runtime.census.stuck)}\n"
            return web.Response(status=503, text=text)
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


def stuck_passes(runtime: Runtime) -> list[str]:
    limit = runtime.clock() - STUCK_AFTER_S
    return sorted(
        f"{resource.namespace}/{resource.name}"
        for resource, started in runtime.running.items()
        if started < limit
    )
