"""How soon a waiting request has failed on the other side: agents killed, stopped, or told to.

Several pairs of agents are struck at once: what a trial needs before and after it is slow, what it
measures is not, and a busier machine makes the worst case no better.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from disagg_bench.connections import connect
from disagg_bench.rows import Row, at_most
from disagg_bench.shapes import small_state
from disagg_transfer.client import AgentClient, TransferFailed
from disagg_transfer.local import LocalAgent

_PAIRS: Final = 5
_ROUNDS: Final = 4
_HEARTBEAT_LIMIT_S: Final = 3.0
_GIVE_UP_S: Final = 60.0


class UnseenFailureError(Exception):
    """The request did not fail, or not as it should have."""


class Watched:
    """A pair of agents with a request in flight between their engines."""

    prefill: LocalAgent
    decode: LocalAgent

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._calls = ThreadPoolExecutor(2)
        self._clients: dict[str, AgentClient] = {}
        self._failures: dict[str, Future[tuple[float, str]]] = {}
        self._room = 0
        self._struck_at = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.callback(self._calls.shutdown, wait=False)
            limits = {"default": _GIVE_UP_S}
            self.prefill = opened.enter_context(
                LocalAgent(self._folder / "prefill", role="prefill", timeouts=limits)
            )
            self.decode = opened.enter_context(
                LocalAgent(
                    self._folder / "decode", role="decode", peers=[self._peer], timeouts=limits
                )
            )
            opened.callback(self._disconnect)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def _peer(self) -> str:
        return f"127.0.0.1:{self.prefill.control_port}"

    def agent(self, side: str) -> LocalAgent:
        return self.prefill if side == "prefill" else self.decode

    def begin(self) -> None:
        """Connect engines and leave a request in flight: claimed by decode, begun by prefill."""
        self._disconnect()
        self._clients = {
            side: connect(self.agent(side).socket_path, role=side, shape=small_state())
            for side in ("prefill", "decode")
        }
        # A decode agent that has long been without the other engine ends requests at once.
        _until(lambda: self.decode.report().ready, "the agents meet with both engines")
        self._room = room = int.from_bytes(os.urandom(7), "big")
        writer, reader = self._clients["prefill"], self._clients["decode"]
        self._failures["decode"] = self._calls.submit(
            _failure, lambda: reader.pull(room, peer=self._peer, expect={"mamba": 1})
        )
        writer.begin(room)
        self._failures["prefill"] = self._calls.submit(
            _failure, lambda: writer.wait_released(room, _GIVE_UP_S)
        )
        _until(
            lambda: any(r["room"] == room and r["peer_pod"] for r in self.prefill.transfers()),
            "decode's claim reaches prefill",
        )

    def strike(self, blow: "Blow") -> None:
        self._struck_at = time.monotonic()
        blow.act(self)

    def seconds(self, blow: "Blow") -> float:
        """From the blow to the failure in the other side's engine."""
        side = "decode" if blow.side == "prefill" else "prefill"
        failed_at, cause = self._failures[side].result(_GIVE_UP_S)
        if cause != blow.cause:
            raise UnseenFailureError(f"{blow.name}: {side}'s request failed by {cause}")
        return failed_at - self._struck_at

    def abort(self, side: str) -> None:
        self._clients[side].abort(self._room, "the benchmark gives it up")

    def heal(self) -> None:
        for agent in (self.prefill, self.decode):
            agent.process.send_signal(signal.SIGCONT)
            if agent.process.poll() is not None:
                agent.restart()

    def _disconnect(self) -> None:
        for client in self._clients.values():
            client.close()
        for failure in self._failures.values():
            failure.exception(_GIVE_UP_S)
        self._clients, self._failures = {}, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    name: str
    side: str  # that is struck; the other one's request is watched
    act: Callable[[Watched], None]
    cause: str
    limit_s: float


def _blows() -> Iterator[Blow]:
    for side in ("prefill", "decode"):
        yield Blow(
            name="sigkill", side=side, act=_signal(side, kill=True), cause="PeerLost", limit_s=1
        )
        yield Blow(
            name="sigstop",
            side=side,
            act=_signal(side, kill=False),
            cause="PeerLost",
            limit_s=_HEARTBEAT_LIMIT_S + 1,
        )
        yield Blow(name="told", side=side, act=_abort(side), cause="Aborted", limit_s=1)


def measure_detection(folder: Path) -> Iterator[Row]:
    with ExitStack() as opened, ThreadPoolExecutor(_PAIRS) as calls:
        folders = [folder / str(number) for number in range(_PAIRS)]
        pairs = list(calls.map(lambda each: opened.enter_context(Watched(each)), folders))
        for blow in _blows():
            worst_s = max(second for _ in range(_ROUNDS) for second in _trial(pairs, calls, blow))
            yield Row(
                name=f"detection/{blow.side}-{blow.name}-worst-of-{_PAIRS * _ROUNDS}",
                value=worst_s,
                unit="s",
                target=at_most(blow.limit_s),
            )


def _trial(pairs: Sequence[Watched], calls: ThreadPoolExecutor, blow: Blow) -> list[float]:
    try:
        list(calls.map(Watched.begin, pairs))
        for pair in pairs:
            pair.strike(blow)
        return [pair.seconds(blow) for pair in pairs]
    finally:
        list(calls.map(Watched.heal, pairs))


def _signal(side: str, *, kill: bool) -> Callable[[Watched], None]:
    def act(pair: Watched) -> None:
        process = pair.agent(side).process
        process.send_signal(signal.SIGKILL if kill else signal.SIGSTOP)
        if kill:
            process.wait()

    return act


def _abort(side: str) -> Callable[[Watched], None]:
    return lambda pair: pair.abort(side)


def _failure(call: Callable[[], object]) -> tuple[float, str]:
    """When the call failed, and by which cause."""
    try:
        call()
    except TransferFailed as failure:
        return time.monotonic(), failure.cause
    raise UnseenFailureError("the request came through though it was struck")


def _until(holds: Callable[[], bool], race: str) -> None:
    deadline = time.monotonic() + _GIVE_UP_S
    while not holds():
        if time.monotonic() > deadline:
            raise UnseenFailureError(f"not within {_GIVE_UP_S:.0f} s: {race}")
        threading.Event().wait(0.01)
