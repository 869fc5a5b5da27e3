"""The other process: prefill's engine, the target of plain NIXL, and the sender of the floor."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self, assert_never

import xxhash

from disagg_bench.baseline_nixl import PlainNixl
from disagg_bench.connections import connect
from disagg_bench.pool import Pool, draw_pages
from disagg_bench.shapes import Shape

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
    """Take one request through, chunk by chunk, and wait for its release; answered by Served."""

    room: int
    repetition: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCrowd:
    """As many requests at once, each with its share of the pages; answered by when they began."""

    rooms: tuple[int, ...]
    repetition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    started_at: float  # monotonic, one clock for all processes of a machine
    offered_at: float
    reserve_s: float  # until the arena had room: mostly until earlier chunks had left it
    gather_s: float
    offer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Time the digest of so many bytes alone; answered by seconds."""

    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send so many bytes of the pool over plain TCP; answered by the time it began."""

    port: int
    nbytes: int


Call = Open | Serve | ServeCrowd | Digest | Send


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

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

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
            f"plain-prefill-{call.shape.name}",
            base=self._pool.base,
            nbytes=self._pool.nbytes,
            passive=True,
        )
        self.opened = Opened(
            base=self._pool.base,
            metadata=self._nixl.metadata,
            descriptors=self._pool.descriptors(),
        )

    def answer(self, call: Serve | ServeCrowd | Digest | Send) -> Any:
        match call:
            case Serve():
                return self._serve(call)
            case ServeCrowd():
                return self._serve_crowd(call)
            case Digest():
                view = self._pool.start(call.nbytes)
                return _seconds(lambda: xxhash.xxh3_128_digest(view))
            case Send():
                return self._send(call)
            case _:
                assert_never(call)

    def _serve(self, call: Serve) -> Served:
        pages = draw_pages(self._shape, side="prefill", repetition=call.repetition)
        chunks = self._shape.chunks(call.chunk_bytes)
        ready = self._client.begin(call.room, reserve=(chunks[0].nbytes,))
        time.sleep(COMPUTE_S)
        reserve_s = gather_s = offer_s = 0.0
        started_at = now = time.monotonic()
        for chunk in chunks:
            if ready:
                extent, ready = ready[0], ()
            else:
                extent = self._client.reserve(call.room, chunk.nbytes, timeout_s=_WAIT_S)
            reserved_at = time.monotonic()
            self._pool.gather(chunk, pages[chunk.block.name], extent.view)
            gathered_at = time.monotonic()
            self._client.offer(
                call.room,
                chunk.block.name,
                extent,
                items=chunk.count,
                first=chunk.first,
                final=chunk.final,
                last=chunk is chunks[-1],
            )
            reserve_s += reserved_at - now
            gather_s += gathered_at - reserved_at
            now = time.monotonic()
            offer_s += now - gathered_at
        self._client.wait_released(call.room, _WAIT_S)
        return Served(
            started_at=started_at,
            offered_at=now,
            reserve_s=reserve_s,
            gather_s=gather_s,
            offer_s=offer_s,
        )

    def _serve_crowd(self, call: ServeCrowd) -> float:
        pages = draw_pages(self._shape, side="prefill", repetition=call.repetition)
        (whole,) = self._shape.chunks(self._shape.nbytes)
        shares = whole.shares(len(call.rooms))
        ready = {
            room: self._client.begin(room, reserve=(share.nbytes,))
            for room, share in zip(call.rooms, shares, strict=True)
        }
        time.sleep(COMPUTE_S)
        started_at = time.monotonic()

        for room, share in zip(call.rooms, shares, strict=True):
            extents = ready[room] or self._client.reserve_all(
                room, (share.nbytes,), timeout_s=_WAIT_S
            )
            self._pool.gather(share, pages[share.block.name], extents[0].view)
            self._client.offer(room, share.block.name, extents[0], items=share.count, last=True)
        for room in call.rooms:
            self._client.wait_released(room, _WAIT_S)
        return started_at

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
