"""Requests handed to both engines of their pair, and the plain ones that tell when all is well."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Final

from disagg_faults.errors import HangError
from disagg_faults.model import NAMES
from disagg_faults.oracle import Seen
from disagg_faults.orders import Ending, Order, Outcome
from disagg_faults.plan import DECODE, PREFILLS, Request
from disagg_faults.site import Site

HEAL_S: Final = 30.0
_PROBE_S: Final = 20.0  # more than every deadline together: a probe fails, or is exact, within it
_Ordered = tuple[Request, "Future[Outcome]", "Future[Outcome]"]


def carry(site: Site, requests: Sequence[Request], *, within_s: float) -> list[Seen]:
    """All of them at once, and what either engine says of each."""
    deadline = time.monotonic() + within_s
    ordered = [_hand_out(site, request) for request in requests]
    return [
        Seen(
            request=request,
            prefill=_result(prefill, deadline),
            decode=_result(decode, deadline),
        )
        for request, prefill, decode in ordered
    ]


def await_service(site: Site, rooms: Iterator[int]) -> None:
    """Return when every pod is well and a plain request to each prefill pod is exact.

    HangError when that takes too long. A connection may look well and yet be silent, after lost
    packets: TCP waits longer before each attempt. So a probe may fail; the next one is exact.
    """
    deadline = time.monotonic() + HEAL_S
    while True:
        site.await_health(within_s=deadline - time.monotonic())
        seen = carry(site, [_probe(pod, next(rooms)) for pod in PREFILLS], within_s=_PROBE_S)
        if all(_exact(one.prefill) and _exact(one.decode) for one in seen):
            site.await_health(within_s=deadline - time.monotonic())
            return
        if time.monotonic() > deadline:
            raise HangError(f"no plain request is exact within {HEAL_S:g} s: {seen}")


def _hand_out(site: Site, request: Request) -> _Ordered:
    prefill = Order(
        room=request.room,
        items=request.items,
        chunk_bytes=request.chunk_bytes,
        have={},
        lag_s=request.prefill_lag_s,
        pace_s=request.pace_s,
        asks=request.asks,
        abort=request.abort == "prefill",
    )
    decode = Order(
        room=request.room,
        items=request.items,
        chunk_bytes=request.chunk_bytes,
        have=request.have,
        peer=site.peer(request.prefill),
        lag_s=request.decode_lag_s,
        hold_s=request.hold_s,
        whole=request.whole,
        abort=request.abort == "decode",
    )
    engines = site.engines
    return request, engines[request.prefill].order(prefill), engines[DECODE].order(decode)


def _probe(pod: str, room: int) -> Request:
    return Request(
        room=room,
        prefill=pod,
        items={name: 1 if name == "kv" else 0 for name in NAMES},
        prefill_lag_s=0.0,
        decode_lag_s=0.0,
        chunk_bytes=1 << 20,
        pace_s=0.0,
        have={},
        hold_s=0.0,
        whole=False,
        asks=False,
        abort="",
    )


def _exact(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.ending is Ending.EXACT


def _result(future: "Future[Outcome]", deadline: float) -> Outcome | None:
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except LateError:
        return None
