"""Ten thousand requests in a row: what they leave behind in the agents."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from disagg_bench.connections import connect
from disagg_bench.processes import open_files, resident_bytes
from disagg_bench.rows import Row, at_most
from disagg_bench.shapes import small_state
from disagg_transfer.client import AgentClient
from disagg_transfer.local import LocalAgent

_REQUESTS: Final = 10_000
_WARM_UP: Final = 1000  # allocators and caches reach their size
_SPARES: Final = 64  # payloads, each used again and again under another room
_WAIT_S: Final = 60.0
_MEMORY_MB: Final = 4.0  # 0.4 KB a request would be more


class WrongStateError(Exception):
    """A request arrived with other bytes than were sent."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What one agent holds while nothing is in flight."""

    memory: int
    files: int
    arena: int
    inflight: int

    @classmethod
    def by(cls, agent: LocalAgent) -> "_Held":
        pid = agent.process.pid
        memory, files = resident_bytes(pid), open_files(pid)
        report = agent.report()  # last: the connection it comes by is a file of the agent's, too
        return cls(memory, files, report.arena.used, report.inflight)


def measure_endurance(folder: Path) -> Iterator[Row]:
    with (
        LocalAgent(folder / "prefill", role="prefill") as prefill,
        LocalAgent(
            folder / "decode", role="decode", peers=[f"127.0.0.1:{prefill.control_port}"]
        ) as decode,
    ):
        agents = (prefill, decode)
        shape = small_state()
        writer = connect(prefill.socket_path, role="prefill", shape=shape)
        reader = connect(decode.socket_path, role="decode", shape=shape)
        try:
            peer = f"127.0.0.1:{prefill.control_port}"
            _serve(writer, reader, peer=peer, rooms=range(_WARM_UP))
            before = [_Held.by(agent) for agent in agents]
            _serve(writer, reader, peer=peer, rooms=range(_WARM_UP, _WARM_UP + _REQUESTS))
            after = [_Held.by(agent) for agent in agents]
        finally:
            writer.close()
            reader.close()
    yield from _rows(before, after)


def _rows(before: list[_Held], after: list[_Held]) -> Iterator[Row]:
    """The worse of both agents."""
    pairs = list(zip(before, after, strict=True))
    grown = max(now.memory - then.memory for then, now in pairs)
    name = f"endurance/{_REQUESTS}-requests"
    yield Row(
        name=f"{name}-memory", value=max(grown, 0) / 1e6, unit="MB", target=at_most(_MEMORY_MB)
    )
    files = max(now.files - then.files for then, now in pairs)
    yield Row(name=f"{name}-files", value=max(files, 0), unit="fds", target=at_most(0))
    held = max(now.arena for now in after)
    yield Row(name=f"{name}-arena", value=held, unit="bytes", target=at_most(0))
    inflight = max(now.inflight for now in after)
    yield Row(name=f"{name}-inflight", value=inflight, unit="", target=at_most(0))


def _serve(writer: AgentClient, reader: AgentClient, *, peer: str, rooms: range) -> None:
    payloads = [os.urandom(_item_bytes()) for _ in range(_SPARES)]
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(_send, writer, payloads, rooms)
        try:
            for room in rooms:
                _receive(reader, payloads[room % _SPARES], peer=peer, room=room)
        except BaseException:
            sent.cancel()
            writer.close()
            raise
        sent.result()


def _send(client: AgentClient, payloads: list[bytes], rooms: range) -> None:
    for room in rooms:
        client.begin(room)
        extent = client.reserve(room, _item_bytes(), timeout_s=_WAIT_S)
        extent.view[:] = payloads[room % _SPARES]
        client.offer(room, "mamba", extent, items=1, last=True, aux=b"")
        client.wait_released(room, _WAIT_S)


def _receive(client: AgentClient, payload: bytes, *, peer: str, room: int) -> None:
    arrival = client.pull(room, peer=peer, expect={"mamba": 1})
    if bytes(arrival.payloads["mamba"].view) != payload:
        raise WrongStateError(f"request {room} arrived with other bytes")
    client.release(room)


def _item_bytes() -> int:
    return small_state().nbytes
