"""An API server that fails on demand: a proxy in front of a real one, for fault injection only."""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml
from aiohttp import web

_HOP: Final = frozenset({"host", "connection", "transfer-encoding", "content-length", "keep-alive"})
_CONFLICTING: Final = frozenset({"content-encoding", *_HOP})


class Fault(Enum):
    NONE = "none"
    BUSY = "busy"  # 429, and the server never hears of it
    BROKEN = "broken"  # 500, likewise
    LOST = "lost"  # done by the server; the connection breaks before the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request that changes something."""

    method: str
    path: str


class FaultyApi:
    """Use as an async context manager; `judge` is asked of every write before it is sent, and
    `done` is told of every write that the server has answered and its client has not heard of.
    """

    def __init__(self, kubeconfig: Path, *, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._server, self._tls = _credentials(kubeconfig, folder)
        self.kubeconfig = folder / "faulty.kubeconfig"
        self.judge: Callable[[Asked], Fault] = lambda _: Fault.NONE
        self.done: Callable[[Asked], None] = lambda _: None
        self.writes: list[Asked] = []
        self._watches: set[web.StreamResponse] = set()
        self._silent: set[web.StreamResponse] = set()
        self._requests: dict[web.StreamResponse, web.BaseRequest] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0), auto_decompress=False
        )
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        self.kubeconfig.write_text(json.dumps(_plain_kubeconfig(f"http://127.0.0.1:{port}")))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut_watches()
        await self._runner.cleanup()
        await self._session.close()

    def silence_watches(self) -> None:
        """From now on the watches that there are tell nothing, and stay open: as a connection does
        whose other end is gone without a word.
        """
        self._silent |= self._watches

    def cut_watches(self, *, gone: bool = False, code: int = 410) -> int:
        """Break every watch; with `gone` each first hears that its version is too old (410), or
        another `code`, which kopf cannot heal.
        """
        watches = list(self._watches)
        for answer in watches:
            transport = self._requests[answer].transport
            if transport is not None:
                if gone:
                    error = {"kind": "Status", "code": code, "reason": "Expired", "message": "old"}
                    line = json.dumps({"type": "ERROR", "object": error}).encode() + b"\n"
                    transport.write(b"%x\r\n%s\r\n" % (len(line), line))
                transport.close()
        return len(watches)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.query.get("watch") in {"1", "true"}:
            return await self._watch(request)
        write = request.method != "GET"
        asked = Asked(method=request.method, path=request.path)
        fault = self.judge(asked) if write else Fault.NONE
        if fault in {Fault.BUSY, Fault.BROKEN}:
            return _refusal(fault)
        try:
            async with self._send(request, body) as answer:
                data = await answer.read()
        except aiohttp.ClientError:
            return _refusal(Fault.BROKEN)
        if write:
            self.writes.append(asked)
            self.done(asked)
        if fault is Fault.LOST and request.transport is not None:
            request.transport.abort()
        return web.Response(status=answer.status, body=data, headers=_kept(answer.headers))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._send(request, b"") as answer:
                told = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
                told.enable_chunked_encoding()
                await told.prepare(request)
                self._watches.add(told)
                self._requests[told] = request
                try:
                    await self._relay(answer, told)
                finally:
                    self._watches.discard(told)
                    self._silent.discard(told)
                    del self._requests[told]
                return told
        except aiohttp.ClientError:
            return _refusal(Fault.BROKEN)

    async def _relay(self, answer: aiohttp.ClientResponse, told: web.StreamResponse) -> None:
        with contextlib.suppress(ConnectionError):
            async for part in answer.content.iter_any():
                if told not in self._silent:
                    await told.write(part)
            if told in self._silent:
                await asyncio.Event().wait()

    def _send(self, request: web.Request, body: bytes) -> Any:
        kept = {n: value for n, value in request.headers.items() if n.lower() not in _HOP}
        return self._session.request(
            request.method,
            f"{self._server}{request.raw_path}",
            data=body or None,
            headers={**kept, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        )


def _kept(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _CONFLICTING}


def _refusal(fault: Fault) -> web.Response:
    code, reason = (429, "TooManyRequests") if fault is Fault.BUSY else (500, "InternalError")
    said = {"kind": "Status", "status": "Failure", "code": code, "reason": reason}
    return web.json_response(
        {**said, "message": f"{reason}, as asked for"}, status=code, headers={"Retry-After": "1"}
    )


def _credentials(kubeconfig: Path, folder: Path) -> tuple[str, ssl.SSLContext]:
    parsed = yaml.safe_load(kubeconfig.read_text())
    cluster, user = parsed["clusters"][0]["cluster"], parsed["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    tls = ssl.create_default_context(cadata=authority)
    files = []
    for name in ("client-certificate-data", "client-key-data"):
        file = folder / name
        file.write_bytes(base64.b64decode(user[name]))
        file.chmod(0o600)
        files.append(file)
    tls.load_cert_chain(str(files[0]), str(files[1]))
    server: str = cluster["server"]
    return server, tls


def _plain_kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "faulty", "cluster": {"server": server}}],
        "users": [{"name": "faulty", "user": {}}],
        "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "faulty"}}],
        "current-context": "faulty",
    }
