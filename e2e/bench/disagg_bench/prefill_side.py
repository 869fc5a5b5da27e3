"""The other process: prefill's engine, the target of plain NIXL, and the sender of the floor."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self, assert_never

import xxhash

from disagg_bench.baseline_nixl import PlainNixl
from disagg_bench.connections import connect
from disagg_bench.pool import Pool, draw_pages
from disagg_bench.shapes import Shape
from disagg_transfer.client import Extent

# Stands for prefill's compute: decode's claim on the room is there before its first offer.
COMPUTE_S: Final = 0.005
_WAIT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Make the pool of a shape and register with its agent; answered by Opened."""

    shape: Shape
    socket_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    base: int
    metadata: bytes
    descriptors: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Take one request through: gather, offer, wait for the release; answered by Served."""

    room: int
    repetition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    started_at: float  # monotonic, one clock for all processes of a machine
    offered_at: float
    reserve_s: float
    gather_s: float
    offer_s: float  # the agent's digest, and one message


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Time the digest of so many bytes alone; answered by seconds."""

    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send so many bytes of the pool over plain TCP; answered by the time it began."""

    port: int
    nbytes: int


Call = Open | Serve | Digest | Send


class PrefillSide:
    """The handle of that process; one call at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Killed: it holds nothing but its own memory, and after a failure it may sit in a call.
        self._process.kill()
        self._process.join()
        self._calls.close()

    def tell(self, call: Call) -> None:
        self._calls.send(call)

    def answer(self) -> Any:
        if not self._calls.poll(_WAIT_S):
            raise TimeoutError(f"the prefill process did not answer within {_WAIT_S:.0f} s")
        answer = self._calls.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, call: Call) -> Any:
        self.tell(call)
        return self.answer()


def serve(calls: "Connection[Any, Any]") -> None:
    """The process: answer calls until the other end is gone."""
    engine: _Engine | None = None
    while True:
        try:
            call: Call = calls.recv()
        except EOFError:
            return
        try:
            match call:
                case Open():
                    engine = _Engine(call)
                    answer: Any = engine.opened
                case _:
                    assert engine is not None
                    answer = engine.answer(call)
        except Exception as error:  # noqa: BLE001  (outermost guard: told to the other process)
            answer = error
        calls.send(answer)


class _Engine:
    def __init__(self, call: Open) -> None:
        self._shape = call.shape
        self._pool = Pool(call.shape, filled=True)
        self._client = connect(call.socket_path, role="prefill", shape=call.shape)
        self._nixl = PlainNixl(
            f"plain-prefill-{call.shape.name}", base=self._pool.base, nbytes=self._pool.nbytes
        )
        self._offers = ThreadPoolExecutor(1)
        self.opened = Opened(
            base=self._pool.base,
            metadata=self._nixl.metadata,
            descriptors=self._pool.descriptors(),
        )

    def answer(self, call: Serve | Digest | Send) -> Any:
        match call:
            case Serve():
                return self._serve(call)
            case Digest():
                view = self._pool.start(call.nbytes)
                return _seconds(lambda: xxhash.xxh3_128_digest(view))
            case Send():
                return self._send(call)
            case _:
                assert_never(call)

    def _serve(self, call: Serve) -> Served:
        pages = draw_pages(self._shape, side="prefill", repetition=call.repetition)
        self._client.begin(call.room)
        time.sleep(COMPUTE_S)
        started_at = time.monotonic()
        reserve_s = gather_s = 0.0
        offers: list[Future[float]] = []
        for block in self._shape.blocks:
            asked_at = time.monotonic()
            extent = self._client.reserve(call.room, block.nbytes, timeout_s=_WAIT_S)
            reserve_s += time.monotonic() - asked_at
            gather_s += _seconds(partial(self._pool.gather, block, pages[block.name], extent.view))
            # While the agent works on one component, the next one is gathered.
            last = block is self._shape.blocks[-1]
            offer = partial(self._offer, call.room, block.name, extent, block.pages, last=last)
            offers.append(self._offers.submit(offer))
        offer_s = sum(pending.result() for pending in offers)
        offered_at = time.monotonic()
        self._client.wait_released(call.room, _WAIT_S)
        return Served(
            started_at=started_at,
            offered_at=offered_at,
            reserve_s=reserve_s,
            gather_s=gather_s,
            offer_s=offer_s,
        )

    def _offer(self, room: int, name: str, extent: Extent, items: int, *, last: bool) -> float:
        return _seconds(
            lambda: self._client.offer(room, name, extent, items=items, last=last, aux=b"")
        )

    def _send(self, call: Send) -> float:
        view = self._pool.start(call.nbytes)
        with socket.create_connection(("127.0.0.1", call.port)) as plain:
            started_at = time.monotonic()
            plain.sendall(view)
            return started_at


def _seconds(work: Callable[[], Any]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start
