"""What probes, Prometheus and the operator read; the report only by who shows a key's token."""

import asyncio
import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from disagg_transfer.agent.http_guard import MAX_CONNECTIONS, Guard, timed
from disagg_transfer.agent.outcomes import Changes
from disagg_transfer.agent.ports import listen, serve
from disagg_transfer.agent.waiting_room import WaitingRoom
from disagg_transfer.contract import (
    PATH_LIVE,
    PATH_METRICS,
    PATH_READY,
    PATH_REPORT,
    PATH_STARTED,
    Report,
    report_token,
)

MAX_WAIT_S: Final = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def parse_query(query: Mapping[str, str]) -> tuple[int, float]:
    """Cursor and seconds to wait; ValueError if either is no number."""
    try:
        cursor, wait_s = int(query.get("cursor", "-1")), float(query.get("wait_s", "0"))
    except ValueError:
        wait_s = math.nan
    if not math.isfinite(wait_s):  # a timer of NaN would break the event loop's order
        raise ValueError("cursor and wait_s must be numbers")
    return cursor, min(wait_s, MAX_WAIT_S)


def authorized(header: str, *, keys: Iterable[bytes]) -> bool:
    """Whether it is the token of one of the keys; takes as long for any that is not."""
    shown = header.encode(errors="surrogateescape")
    wanted = [f"Bearer {report_token(key)}".encode() for key in keys]
    return sum(hmac.compare_digest(shown, each) for each in wanted) > 0


class Http:
    def __init__(
        self,
        *,
        report: Callable[[], Report],
        alive: Callable[[], bool],
        metrics: Callable[[], bytes],
        changes: Changes,
        refused: Callable[[str], None],
        keys: Callable[[], Iterable[bytes]],
    ) -> None:
        self._report, self._alive, self._metrics = report, alive, metrics
        self._changes = changes
        self._refused = refused
        self._keys = keys
        self._room = WaitingRoom(seats=MAX_CONNECTIONS, count=refused, what="HTTP port")
        self._log = logging.getLogger(__name__)
        self._log.addFilter(self._is_ours)
        self.port = 0

    async def run(self, port: int) -> None:
        app = web.Application(middlewares=[timed])
        app.add_routes(
            [
                web.get(PATH_LIVE, self._live),
                web.get(PATH_STARTED, self._live),
                web.get(PATH_READY, self._ready),
                web.get(PATH_METRICS, self._scrape),
                web.get(PATH_REPORT, self._poll),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, logger=self._log)
        await runner.setup()
        try:
            sock = listen(port)
            self.port = sock.getsockname()[1]
            loop = asyncio.get_running_loop()
            await serve(await loop.create_server(lambda: self._guarded(runner), sock=sock))
        finally:
            await runner.cleanup()

    def _is_ours(self, record: logging.LogRecord) -> bool:
        """aiohttp logs a traceback for every request that is none; those are counted instead."""
        foreign = isinstance((record.exc_info or (None, None))[1], HttpProcessingError)
        if foreign:
            self._refused("protocol")
        return not foreign

    def _guarded(self, runner: web.AppRunner) -> Guard:
        if runner.server is None:
            raise RuntimeError("aiohttp's server is set up before the socket listens")
        return Guard(runner.server(), self._room)

    async def _live(self, _request: web.Request) -> web.Response:
        if self._alive():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the NIXL thread has ended\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        report = self._report()
        if report.ready:
            return web.Response(text="ok\n")
        return web.Response(
            status=503, text=f"{report.not_ready_reason}: {report.not_ready_message}\n"
        )

    async def _scrape(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def _poll(self, request: web.Request) -> web.Response:
        """At once if the cursor has moved on, else when it does or the wait is over."""
        if not authorized(request.headers.get("Authorization", ""), keys=self._keys()):
            return self._unauthorized(request)
        try:
            cursor, wait_s = parse_query(request.query)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + wait_s):
                while self._changes.cursor == cursor:
                    await self._changes.pulse.wait()
        except TimeoutError:
            pass
        return web.Response(body=self._report().to_json(), content_type="application/json")

    def _unauthorized(self, request: web.Request) -> web.Response:
        if isinstance(request.transport, asyncio.WriteTransport):
            detail = "no report without a token of the deployment's key"
            self._room.refuse(request.transport, "authentication", detail)
        return web.Response(
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
            text="a report needs a token of the deployment's key; disagg-agent shows it in the pod\n",
        )
