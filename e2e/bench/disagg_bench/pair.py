"""Both sides of one shape: two agents, two engines, and plain NIXL beside them."""

import contextlib
import itertools
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
import xxhash

from disagg_bench.baseline_nixl import PlainNixl
from disagg_bench.connections import connect
from disagg_bench.pool import Pool, draw_pages, page_indices
from disagg_bench.prefill_side import Digest, Open, Opened, PrefillSide, Send, Serve, Served
from disagg_bench.shapes import Shape
from disagg_transfer.client import Arrival
from disagg_transfer.local import LocalAgent

# One transport for everything that is compared; shared memory between the agents would not be fair.
TRANSPORT: Final = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
_SLACK_BYTES: Final = 16 << 20  # extents are aligned, one per component


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """Seconds of one request by the agents."""

    total_s: float  # first gathered byte to usable
    reserve_s: float
    gather_s: float
    offer_s: float
    pull_s: float  # last offer to arrival: what of wire and digest check was not hidden
    check_s: float  # decode's digest of the same bytes, timed alone, after
    scatter_s: float


class Pair:
    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape, self._folder = shape, folder
        self._rooms = itertools.count(1)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._other = opened.enter_context(PrefillSide())
            self.prefill = opened.enter_context(self._agent("prefill", ()))
            address = f"127.0.0.1:{self.prefill.control_port}"
            self.decode = opened.enter_context(self._agent("decode", (address,)))
            self._pool = Pool(self.shape, filled=False)
            self._meet(opened)
            self._client = connect(self.decode.socket_path, role="decode", shape=self.shape)
            opened.callback(self._client.close)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _meet(self, opened: contextlib.ExitStack) -> None:
        """Plain NIXL between the two engines' processes."""
        name = f"plain-decode-{self.shape.name}"
        self._nixl = PlainNixl(name, base=self._pool.base, nbytes=self._pool.nbytes)
        opened.callback(self._nixl.close)
        self._there: Opened = self._other.ask(
            Open(shape=self.shape, socket_path=self.prefill.socket_path)
        )
        self._nixl.meet(self._there.metadata)
        self._nixl.prepare(here=self._pool.descriptors(), there=self._there.descriptors)

    def by_agents(self, repetition: int) -> Journey:
        """One request from prefill's pool to decode's, checked."""
        own = draw_pages(self.shape, side="decode", repetition=repetition)
        self._pool.clear()
        room = next(self._rooms)
        self._other.tell(Serve(room=room, repetition=repetition))
        arrival = self._client.pull(
            room,
            peer=f"127.0.0.1:{self.prefill.control_port}",
            expect={block.name: block.pages for block in self.shape.blocks},
        )
        arrived_at = time.monotonic()
        for block in self.shape.blocks:
            self._pool.scatter(block, own[block.name], arrival.payloads[block.name].view)
        usable_at = time.monotonic()
        check_s = _digest_s(arrival)
        self._client.release(room)
        served: Served = self._other.answer()
        self._check(own, repetition)
        return Journey(
            total_s=usable_at - served.started_at,
            reserve_s=served.reserve_s,
            gather_s=served.gather_s,
            offer_s=served.offer_s,
            pull_s=arrived_at - served.offered_at,
            check_s=check_s,
            scatter_s=usable_at - arrived_at,
        )

    def by_one_read(self) -> float:
        """Seconds of one contiguous NIXL READ of as many bytes, checked."""
        self._pool.clear()
        nbytes = self.shape.nbytes
        seconds = self._nixl.read_range(
            local=self._pool.base, remote=self._there.base, nbytes=nbytes
        )
        self._pool.check_start(nbytes)
        return seconds

    def by_paged_read(self, repetition: int) -> float:
        """Seconds of plain NIXL, pool to pool, a descriptor per page, checked."""
        own = draw_pages(self.shape, side="decode", repetition=repetition)
        theirs = draw_pages(self.shape, side="prefill", repetition=repetition)
        self._pool.clear()
        seconds = self._nixl.read_pages(
            local=page_indices(self.shape, own), remote=page_indices(self.shape, theirs)
        )
        self._check(own, repetition)
        return seconds

    def by_socket(self) -> float:
        """Seconds of as many bytes over a plain TCP socket, checked."""
        self._pool.clear()
        nbytes = self.shape.nbytes
        view = self._pool.start(nbytes)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._other.tell(Send(port=server.getsockname()[1], nbytes=nbytes))
            plain, _ = server.accept()
            with plain:
                filled = 0
                while filled < nbytes:
                    got = plain.recv_into(view[filled:])
                    assert got, "the sender ended early"
                    filled += got
                ended_at = time.monotonic()
        started_at: float = self._other.answer()
        self._pool.check_start(nbytes)
        return ended_at - started_at

    def by_memcpy(self) -> float:
        """Seconds of one copy of as many bytes within a process."""
        words = self.shape.nbytes // 8
        target = torch.zeros(words, dtype=torch.int64)
        start = time.monotonic()
        target.copy_(self._pool.memory[:words])
        return time.monotonic() - start

    def digest_s(self) -> float:
        """Seconds of the digest of as many bytes in prefill's process."""
        seconds: float = self._other.ask(Digest(nbytes=self.shape.nbytes))
        return seconds

    def _check(self, own: dict[str, torch.Tensor], repetition: int) -> None:
        self._pool.check_pages(own, draw_pages(self.shape, side="prefill", repetition=repetition))

    def _agent(self, role: str, peers: tuple[str, ...]) -> LocalAgent:
        return LocalAgent(
            self._folder / role,
            role=role,
            peers=peers,
            arena_bytes=self.shape.nbytes + _SLACK_BYTES,
            timeouts={"default": 60},
            env=TRANSPORT,
        )


def _digest_s(arrival: Arrival) -> float:
    start = time.monotonic()
    for payload in arrival.payloads.values():
        xxhash.xxh3_128_digest(payload.view)
    return time.monotonic() - start
