"""Listening: sockets that serve IPv4 and IPv6 alike, so that port 0 means one port."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

_Whom = ParamSpec("_Whom")


def listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


async def serve(server: asyncio.Server) -> None:
    """Serve until cancelled. From Python 3.12 on, `serve_forever` would then wait for every open
    connection to end by itself, and an engine's does not.
    """
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


def spawning(
    handle: Callable[_Whom, Coroutine[Any, Any, None]],
) -> Callable[_Whom, None]:
    """A task of our own per connection: asyncio's own logs a traceback when it is cancelled."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(*whom: _Whom.args, **named: _Whom.kwargs) -> None:
        task = asyncio.create_task(handle(*whom, **named))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return accept
