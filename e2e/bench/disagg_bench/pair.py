"""Both sides of one shape: two agents, two engines, and plain NIXL beside them."""

import contextlib
import itertools
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from disagg_bench.baseline_nixl import PlainNixl
from disagg_bench.connections import connect
from disagg_bench.pool import PageTable, Pool, draw_pages, page_indices
from disagg_bench.prefill_side import (
    Digest,
    Open,
    Opened,
    PrefillSide,
    Send,
    Serve,
    ServeCrowd,
    Served,
)
from disagg_bench.processes import cpu_s
from disagg_bench.shapes import Items, Shape
from disagg_transfer.local import LocalAgent

# One transport for everything that is compared; shared memory between the agents would not be fair.
TRANSPORT: Final = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
CHUNK_BYTES: Final = 16 << 20
ARENA_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """Seconds of one request by the agents."""

    total_s: float  # first gathered byte to usable
    reserve_s: float
    gather_s: float
    offer_s: float
    wait_s: float  # decode's engine had nothing to scatter, since before the first gathered byte
    scatter_s: float
    tail_s: float  # last offer to usable
    cpu_s: float  # of all four processes


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRead:
    """Seconds of one contiguous NIXL READ."""

    total_s: float
    cpu_s: float  # of all four processes, of which two have nothing to do


class Pair:
    def __init__(
        self,
        shape: Shape,
        folder: Path,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        arena_bytes: int = ARENA_BYTES,
    ) -> None:
        self.shape, self._folder = shape, folder
        self._chunk_bytes, self._arena_bytes = chunk_bytes, arena_bytes
        self._blocks = {block.name: block for block in shape.blocks}
        self._expect = {block.name: block.items for block in shape.blocks}
        self._rooms = itertools.count(1)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._other = opened.enter_context(PrefillSide())
            self.prefill = opened.enter_context(self._agent("prefill", ()))
            self._peer = f"127.0.0.1:{self.prefill.control_port}"
            self.decode = opened.enter_context(self._agent("decode", (self._peer,)))
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
        self._nixl = PlainNixl(name, base=self._pool.base, nbytes=self._pool.nbytes, passive=False)
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
        before_s = self._cpu_s()
        self._other.tell(Serve(room=room, repetition=repetition, chunk_bytes=self._chunk_bytes))
        wait_s = scatter_s = 0.0
        now = time.monotonic()
        with self._client.stream(room, peer=self._peer, expect=self._expect) as stream:
            for chunk in stream:
                landed_at = time.monotonic()
                items = Items(
                    block=self._blocks[chunk.component], first=chunk.first, count=chunk.items
                )
                self._pool.scatter(items, own[chunk.component], chunk.view)
                wait_s += landed_at - now
                now = time.monotonic()
                scatter_s += now - landed_at
        usable_at = time.monotonic()
        served: Served = self._other.answer()
        spent_s = self._cpu_s() - before_s
        self._check(own, repetition)
        return Journey(
            total_s=usable_at - served.started_at,
            reserve_s=served.reserve_s,
            gather_s=served.gather_s,
            offer_s=served.offer_s,
            wait_s=wait_s,
            scatter_s=scatter_s,
            tail_s=usable_at - served.offered_at,
            cpu_s=spent_s,
        )

    def by_crowd(self, repetition: int, *, requests: int) -> list[float]:
        """Seconds of each of so many requests at once, since the first gathered byte; checked."""
        own = draw_pages(self.shape, side="decode", repetition=repetition)
        (whole,) = self.shape.chunks(self.shape.nbytes)
        rooms = tuple(itertools.islice(self._rooms, requests))
        self._pool.clear()

        def take(room: int, share: Items) -> float:
            expect = {share.block.name: share.count}
            with self._client.stream(room, peer=self._peer, expect=expect) as stream:
                for chunk in stream:
                    items = replace(share, first=share.first + chunk.first, count=chunk.items)
                    self._pool.scatter(items, own[chunk.component], chunk.view)
            return time.monotonic()

        self._other.tell(ServeCrowd(rooms=rooms, repetition=repetition))
        with ThreadPoolExecutor(requests) as calls:
            usable_at = list(calls.map(take, rooms, whole.shares(requests)))
        started_at: float = self._other.answer()
        self._check(own, repetition)
        return [at - started_at for at in usable_at]

    def by_one_read(self) -> OneRead:
        """One contiguous NIXL READ of as many bytes, checked."""
        self._pool.clear()
        nbytes = self.shape.nbytes
        before_s = self._cpu_s()
        seconds = self._nixl.read_range(
            local=self._pool.base, remote=self._there.base, nbytes=nbytes
        )
        spent_s = self._cpu_s() - before_s
        self._pool.check_start(nbytes)
        return OneRead(total_s=seconds, cpu_s=spent_s)

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

    def _cpu_s(self) -> float:
        agents = (self.prefill.process.pid, self.decode.process.pid)
        return sum(map(cpu_s, (os.getpid(), self._other.pid, *agents)))

    def _check(self, own: dict[str, PageTable], repetition: int) -> None:
        self._pool.check_pages(own, draw_pages(self.shape, side="prefill", repetition=repetition))

    def _agent(self, role: str, peers: tuple[str, ...]) -> LocalAgent:
        return LocalAgent(
            self._folder / role,
            role=role,
            peers=peers,
            arena_bytes=self._arena_bytes,
            timeouts={"default": 60},
            env=TRANSPORT,
        )
