"""How soon the other side's request has failed when an agent is killed, or stands still."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from disagg_bench.rows import Row, at_most
from disagg_bench.shapes import small_state
from disagg_transfer.client import AgentClient, TransferFailed
from disagg_transfer.local import LocalAgent

_TRIALS: Final = 5
_HEARTBEAT_LIMIT_S: Final = 3.0
_GIVE_UP_S: Final = 30.0


class UnseenFailureError(Exception):
    """The request did not fail, or not as a lost peer."""


def measure_detection(folder: Path) -> Iterator[Row]:
    with LocalAgent(folder / "prefill", role="prefill", timeouts={"default": 60}) as prefill:
        peers = (f"127.0.0.1:{prefill.control_port}",)
        with LocalAgent(
            folder / "decode", role="decode", peers=peers, timeouts={"default": 60}
        ) as decode:
            killed_s = [_lose(prefill, decode, signal.SIGKILL) for _ in range(_TRIALS)]
            stopped_s = [_lose(prefill, decode, signal.SIGSTOP) for _ in range(_TRIALS)]
    yield Row(
        name=f"detection/sigkill-worst-of-{_TRIALS}",
        value=max(killed_s),
        unit="s",
        target=at_most(1),
    )
    yield Row(
        name=f"detection/sigstop-worst-of-{_TRIALS}",
        value=max(stopped_s),
        unit="s",
        target=at_most(_HEARTBEAT_LIMIT_S + 1),
    )


def _lose(prefill: LocalAgent, decode: LocalAgent, blow: signal.Signals) -> float:
    """Seconds from the blow to prefill's agent until decode's engine knows its request failed."""
    room = int.from_bytes(os.urandom(7), "big")
    writer, reader = _connect(prefill, "prefill"), _connect(decode, "decode")
    try:
        with ThreadPoolExecutor(1) as calls:
            pulled = calls.submit(_failed_at, reader, room, f"127.0.0.1:{prefill.control_port}")
            _await_claim(prefill, writer, room)
            struck_at = time.monotonic()
            prefill.process.send_signal(blow)
            seconds = pulled.result(_GIVE_UP_S) - struck_at
    finally:
        prefill.restart()
        writer.close()
        reader.close()
    return seconds


def _failed_at(client: AgentClient, room: int, peer: str) -> float:
    try:
        client.pull(room, peer=peer, expect={"mamba": 1})
    except TransferFailed as failure:
        failed_at = time.monotonic()
        if failure.cause != "PeerLost":
            raise UnseenFailureError(f"the request failed otherwise: {failure}") from failure
        return failed_at
    raise UnseenFailureError("the request arrived though its peer was gone")


def _await_claim(prefill: LocalAgent, writer: AgentClient, room: int) -> None:
    writer.begin(room)
    deadline = time.monotonic() + _GIVE_UP_S
    while not any(row["room"] == room and row["peer_pod"] for row in prefill.transfers()):
        if time.monotonic() > deadline:
            raise UnseenFailureError("decode's claim did not reach prefill")
        time.sleep(0.01)


def _connect(agent: LocalAgent, role: str) -> AgentClient:
    shape = small_state()
    return AgentClient.connect(
        agent.socket_path,
        role=role,
        model=shape.name,
        components=[block.component for block in shape.blocks],
        page_size=0,
        timeout_s=30,
    )
