"""Agents of simulated pods: one server that answers for every address of the loopback network.

A fake, to load the operator as a fleet would: it says what an agent says, by the same long poll.
"""

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import replace
from typing import Final, Self

from aiohttp import web

from disagg_fleet import fake_reports
from disagg_transfer.contract import HTTP_PORT, PATH_REPORT, Report, StateTypeReport

_START_S: Final = 10.0


def _fresh(pod: str) -> Report:
    return fake_reports.report(
        pod, incarnation=pod, revision="fleet", time=time.time(), transport="rdma"
    )


class FakeAgents:
    """By address of the pod; use as a context manager."""

    def __enter__(self) -> Self:
        self._reports: dict[str, Report] = {}
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if not self._started.wait(_START_S):
            raise TimeoutError(f"port {HTTP_PORT} is not served after {_START_S:g} s")
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def fail(self, ip: str, *, decode_pod: str, prefill_pod: str) -> None:
        """The agent at `ip` tells of a timeout from now on."""
        failure = fake_reports.failure(time=time.time(), component="kv", detail="simulated")
        pair = fake_reports.pair(prefill_pod, decode_pod, failure=failure)
        row = fake_reports.row("kv", pair, timeouts=1, failures=1)
        self._loop.call_soon_threadsafe(self._tell, ip, row)

    def _tell(self, ip: str, row: StateTypeReport) -> None:
        known = self._reports.get(ip) or _fresh(ip)
        self._reports[ip] = replace(known, cursor=known.cursor + 1, state_types=(row,))
        self._changed.pop(ip, asyncio.Event()).set()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        app = web.Application()
        app.add_routes([web.get(PATH_REPORT, self._answer)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        # Every address of the loopback network; nothing outside of this machine is routed to it.
        await web.TCPSite(self._runner, "0.0.0.0", HTTP_PORT, backlog=1024).start()  # noqa: S104

    async def _close(self) -> None:
        for waiting in self._changed.values():
            waiting.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        ip = request.transport.get_extra_info("sockname")[0]
        report = self._reports.setdefault(ip, _fresh(ip))
        if request.query.get("cursor") == str(report.cursor):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(request.query["wait_s"])):
                    await self._changed[ip].wait()
        return web.Response(body=self._reports[ip].to_json())
