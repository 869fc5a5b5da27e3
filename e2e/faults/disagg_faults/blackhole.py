"""How soon both engines' requests have failed when every packet between their pods is lost."""

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from disagg_faults.errors import FaultsError, HangError
from disagg_faults.model import COMPONENTS, MODEL, NAMES, PAGE_SIZE
from disagg_faults.net import INTERFACE, Network
from disagg_transfer.client import AgentClient, TransferFailed
from disagg_transfer.contract import Cause
from disagg_transfer.local import LocalAgent

TRIALS: Final = 20
_PAIRS: Final = 4  # prefill agents on one host, whose packets are lost together
_GIVE_UP_S: Final = 30.0
_DEADLINE_S: Final = 60.0  # of every stage: only the heartbeat can end the request
_BEAT_S: Final = 1.0  # the loss begins anywhere between two heartbeats
_SEED: Final = 1


class UnseenLossError(FaultsError):
    """The request did not fail, or not as a lost peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    agent: LocalAgent
    address: str
    writer: AgentClient


def blackhole_s(folder: Path, *, trials: int = TRIALS) -> tuple[float, ...]:
    """Seconds from the loss until the later of both engines has its failure, one per trial."""
    dice = random.Random(_SEED)  # noqa: S311  (spreads the trials over the heartbeat)
    rooms = itertools.count(1)
    with _site(folder) as (network, decode, reader, pairs):
        seconds: list[float] = []
        while len(seconds) < trials:
            _await_peers(decode, len(pairs))
            seconds += _lose(network, reader, pairs, rooms, dice.uniform(0, _BEAT_S))
        return tuple(seconds[:trials])


_Opened = tuple[Network, LocalAgent, AgentClient, Sequence[_Pair]]


@contextlib.contextmanager
def _site(folder: Path) -> Iterator[_Opened]:
    with contextlib.ExitStack() as opened:
        network = opened.enter_context(Network(("prefill", "decode")))
        pairs = [_pair(opened, network, folder / f"prefill-{at}") for at in range(_PAIRS)]
        peers = tuple(pair.address for pair in pairs)
        decode = opened.enter_context(_agent(network, folder / "decode", "decode", peers))
        yield network, decode, _connect(opened, decode, "decode"), pairs


def _pair(opened: contextlib.ExitStack, network: Network, folder: Path) -> _Pair:
    agent = opened.enter_context(_agent(network, folder, "prefill", ()))
    return _Pair(
        agent=agent,
        address=f"{network.hosts['prefill'].address}:{agent.control_port}",
        writer=_connect(opened, agent, "prefill"),
    )


def _agent(network: Network, folder: Path, role: str, peers: Sequence[str]) -> LocalAgent:
    return LocalAgent(
        folder,
        role=role,
        pod=folder.name,
        peers=peers,
        timeouts={"default": _DEADLINE_S},
        env={"UCX_TLS": "tcp", "UCX_NET_DEVICES": INTERFACE},
        launch=network.hosts[role].launch,
    )


def _connect(opened: contextlib.ExitStack, agent: LocalAgent, role: str) -> AgentClient:
    client = AgentClient.connect(
        agent.socket_path,
        role=role,
        model=MODEL,
        components=COMPONENTS,
        page_size=PAGE_SIZE,
        timeout_s=_GIVE_UP_S,
    )
    opened.callback(client.close)
    return client


def _lose(
    network: Network,
    reader: AgentClient,
    pairs: Sequence[_Pair],
    rooms: Iterator[int],
    wait_s: float,
) -> list[float]:
    """One loss, which every pair meets with a request that both sides have taken up."""
    expect = dict.fromkeys(NAMES, 0)
    with ThreadPoolExecutor(2 * len(pairs)) as calls:
        ends: list[tuple[Future[float], Future[float]]] = []
        for pair in pairs:
            room = next(rooms)
            pair.writer.begin(room)
            ends.append(
                (
                    calls.submit(_lost_at, _waiting(pair.writer, room)),
                    calls.submit(_lost_at, _pulling(reader, room, pair.address, expect)),
                )
            )
            _await_claim(pair.agent, room)
        time.sleep(wait_s)
        lost_at = time.monotonic()
        network.lose("prefill")
        try:
            return [max(end.result(_GIVE_UP_S) for end in both) - lost_at for both in ends]
        finally:
            network.heal("prefill")


def _waiting(writer: AgentClient, room: int) -> Callable[[], object]:
    return lambda: writer.wait_released(room, _DEADLINE_S)


def _pulling(
    reader: AgentClient, room: int, peer: str, expect: dict[str, int]
) -> Callable[[], object]:
    return lambda: reader.pull(room, peer=peer, expect=expect)


def _lost_at(call: Callable[[], object]) -> float:
    try:
        call()
    except TransferFailed as failure:
        failed_at = time.monotonic()
        if failure.cause is not Cause.PEER_LOST:
            raise UnseenLossError(f"the request failed otherwise: {failure}") from failure
        return failed_at
    raise UnseenLossError("the request went on though no packet could pass")


def _await_claim(agent: LocalAgent, room: int) -> None:
    def claimed() -> bool:
        return any(row["room"] == room and row["peer_pod"] for row in agent.transfers())

    _await(claimed, "decode's claim")


def _await_peers(decode: LocalAgent, count: int) -> None:
    def met() -> bool:
        up = [peer for peer in decode.status().peers if peer.state == "up" and not peer.detail]
        return len(up) == count

    _await(met, f"{count} prefill agents to be met")


def _await(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _GIVE_UP_S
    while not holds():
        if time.monotonic() > deadline:
            raise HangError(f"waited {_GIVE_UP_S:g} s for {what}")
        time.sleep(0.01)
