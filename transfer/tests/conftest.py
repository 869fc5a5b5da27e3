import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from disagg_transfer.client import AgentClient, Arrival, Component
from disagg_transfer.local import LocalAgent

SHAPES = {"kv": 4096, "swa": 2048, "nsa": 512, "mamba": 70_000}


def part(state_type, item_bytes=None, name=None):
    return Component(
        name=name or state_type,
        state_type=state_type,
        item_bytes=SHAPES[state_type] if item_bytes is None else item_bytes,
        layers=2,
        dtype="float32",
        page_size=0 if state_type == "mamba" else 16,
    )


EVERY_TYPE = (
    part("kv"),
    part("swa"),
    part("nsa"),
    part("mamba", name="mamba.conv"),
    part("mamba", name="mamba.temporal", item_bytes=12_345),
    part("none", item_bytes=0),
)
ITEMS = {"kv": 3, "swa": 1, "nsa": 3, "mamba.conv": 1, "mamba.temporal": 1, "none": 0}


@dataclass
class Pair:
    prefill: LocalAgent
    decode: LocalAgent
    parts: tuple = EVERY_TYPE
    items: dict = field(default_factory=lambda: dict(ITEMS))
    p: AgentClient | None = None
    d: AgentClient | None = None

    @property
    def peer(self) -> str:
        return f"127.0.0.1:{self.prefill.control_port}"

    def connect(self):
        self.p = connect(self.prefill, "prefill", self.parts)
        self.d = connect(self.decode, "decode", self.parts)
        return self

    def close(self):
        for client in (self.p, self.d):
            if client is not None:
                client.close()

    def payloads(self, items=None):
        sizes = {c.name: c.item_bytes * (items or self.items)[c.name] for c in self.parts}
        return {name: os.urandom(size) for name, size in sizes.items()}

    def offer(self, room, payloads, *, items=None, aux=b"first token", begin=True):
        """All of prefill's side up to the wait."""
        if begin:
            self.p.begin(room)
        names = list(payloads)
        for name in names:
            extent = self.p.reserve(room, len(payloads[name]), timeout_s=5)
            extent.view[:] = payloads[name]
            last = name == names[-1]
            count = (items or self.items)[name]
            self.p.offer(room, name, extent, items=count, last=last, aux=aux if last else b"")

    def pull(self, room, items=None) -> Arrival:
        return self.d.pull(room, peer=self.peer, expect=items or self.items)

    def claimed(self, room):
        """Whether decode has told prefill that it wants the room."""
        return any(
            row["room"] == room and row["peer_pod"] == "prefill" for row in self.decode.transfers()
        )

    def leased(self, room):
        """Whether prefill, having begun on the room, knows who wants it."""
        return any(
            row["room"] == room and row["peer_pod"] == "decode" for row in self.prefill.transfers()
        )

    def round_trip(self, room):
        payloads = self.payloads()
        self.offer(room, payloads)
        arrival = self.pull(room)
        taken = {name: bytes(payload.view) for name, payload in arrival.payloads.items()}
        self.d.release(room)
        self.p.wait_released(room, 5)
        assert taken == payloads
        return arrival


def connect(agent, role, parts, model="tiny", page_size=16, timeout_s=10, rank=0, ranks=1):
    return AgentClient.connect(
        agent.socket_path,
        role=role,
        model=model,
        components=parts,
        page_size=page_size,
        timeout_s=timeout_s,
        rank=rank,
        ranks=ranks,
    )


def in_thread(work: Callable, *args, **kwargs) -> Future:
    future: Future = Future()

    def run():
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (handed to the caller)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(holds: Callable[[], object], *, within_s: float = 10, every_s: float = 0.01):
    """What `holds` returned, once it is true."""
    deadline = time.monotonic() + within_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s"
        threading.Event().wait(every_s)


@contextlib.contextmanager
def agents(folder: Path, *, parts=EVERY_TYPE, both=None, decode=None, prefill=None):
    """A prefill and a decode agent that know each other, with engines connected."""
    common = {"timeouts": {"default": 10}, **(both or {})}
    with LocalAgent(folder / "p", role="prefill", **common, **(prefill or {})) as one:
        peers = [f"127.0.0.1:{one.control_port}"]
        with LocalAgent(
            folder / "d", role="decode", peers=peers, **{**common, **(decode or {})}
        ) as two:
            pair = Pair(one, two, parts)
            try:
                yield pair.connect()
            finally:
                pair.close()


@pytest.fixture(scope="session")
def patient_agents(tmp_path_factory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("patient")
    with agents(folder, both={"faults": True, "timeouts": {"default": 30}}) as pair:
        pair.close()
        yield pair


@pytest.fixture(scope="session")
def hasty_agents(tmp_path_factory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("hasty")
    limits = {"default": 30, "stages": {"notify": 1.0, "queue": 1.0, "scatter": 1.5}}
    with agents(folder, both={"faults": True, "timeouts": limits}) as pair:
        pair.close()
        yield pair


@pytest.fixture
def pair(patient_agents) -> Iterator[Pair]:
    """Agents shared by the session, engines of this test's own; nothing may stay behind."""
    yield from engines_on(patient_agents)


@pytest.fixture
def hasty(hasty_agents) -> Iterator[Pair]:
    """The same with short deadlines, for tests that wait for one."""
    yield from engines_on(hasty_agents)


def engines_on(shared: Pair) -> Iterator[Pair]:
    shared.connect()
    until(lambda: shared.decode.report().ready)
    yield shared
    shared.prefill.fault("lift")
    shared.close()
    for agent in (shared.prefill, shared.decode):
        until(lambda agent=agent: agent.report().arena.used == 0)
        assert agent.report().inflight == 0


@pytest.fixture
def rooms() -> Iterator[int]:
    """Room numbers never used before, as a router's are."""
    return iter(lambda: int.from_bytes(os.urandom(7), "big"), None)


@pytest.fixture(scope="session")
def kit():
    """The plain functions above, for test modules (which cannot import a conftest)."""

    class Kit:
        pass

    for tool in (agents, connect, in_thread, part, until):
        setattr(Kit, tool.__name__, staticmethod(tool))
    Kit.every_type, Kit.items, Kit.pair = EVERY_TYPE, ITEMS, Pair
    return Kit
