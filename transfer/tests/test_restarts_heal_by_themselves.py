"""Agents and engines that are killed and started again, in every combination, idle and at work.

Real processes. What was in flight fails with a cause, the next request is served with nobody's
help, and nothing is left behind.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from disagg_transfer.local import LocalAgent

SCRIPT = Path(__file__).with_name("live_engine.py")
CASES = (
    "prefill agent",
    "decode agent",
    "prefill engine",
    "decode engine",
    "prefill agent, decode agent",
    "prefill engine, decode engine",
    "prefill agent, prefill engine",
    "decode agent, decode engine",
)


class EngineProcess:
    """A `live_engine.py`, driven from here."""

    def __init__(self, agent, role):
        self._agent, self._role = agent, role
        self._numbers = iter(range(1, 1 << 30))
        self.start()

    def start(self):
        self._pending = {0: Future()}
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self._agent.socket_path, self._role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._read, args=(self.process, self._pending), daemon=True).start()
        self._pending[0].result(20)

    def _read(self, process, pending):
        for line in process.stdout:
            answer = json.loads(line)
            pending[answer["id"]].set_result(answer)
        for waiting in pending.values():
            if not waiting.done():
                waiting.set_result({"cause": "killed"})

    def ask(self, **command):
        number = next(self._numbers)
        answer = self._pending[number] = Future()
        self.process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
        self.process.stdin.flush()
        return answer

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class World:
    def __init__(self, prefill, decode):
        self.things = {
            "prefill agent": prefill,
            "decode agent": decode,
            "prefill engine": EngineProcess(prefill, "prefill"),
            "decode engine": EngineProcess(decode, "decode"),
        }
        self.agents = (prefill, decode)
        self.peer = f"127.0.0.1:{prefill.control_port}"

    def request(self, room):
        """One request on both engines; their answers to come."""
        return (
            self.things["prefill engine"].ask(do="prefill", room=room),
            self.things["decode engine"].ask(do="decode", room=room, peer=self.peer),
        )

    def restart(self, names):
        killed = [self.things[name] for name in names]
        for thing in killed:
            thing.kill() if isinstance(thing, EngineProcess) else thing.process.kill()
        for thing in killed:
            thing.start() if isinstance(thing, EngineProcess) else thing.restart()

    @property
    def settled(self):
        """Every agent ready, and nothing of any request left in it."""
        for agent in self.agents:
            report = agent.report()
            if not report.ready or report.arena.used or report.arena.unsettled or report.inflight:
                return False
        return True

    @property
    def descriptors(self):
        return [
            sum(1 for _ in Path(f"/proc/{agent.process.pid}/fd").iterdir()) for agent in self.agents
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restarts")
    common = {"faults": True, "timeouts": {"default": 10}}
    with LocalAgent(folder / "p", role="prefill", **common) as prefill:
        peers = [f"127.0.0.1:{prefill.control_port}"]
        with LocalAgent(folder / "d", role="decode", peers=peers, **common) as decode:
            world = World(prefill, decode)
            yield world
            for name in ("prefill engine", "decode engine"):
                with contextlib.suppress(ProcessLookupError):
                    world.things[name].kill()


def causes(answers, within_s):
    deadline = time.monotonic() + within_s
    return [answer.result(max(0, deadline - time.monotonic()))["cause"] for answer in answers]


@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "at work"])
@pytest.mark.parametrize("case", CASES)
def test_the_next_request_is_served(world, rooms, kit, case, at_work):
    kit.until(lambda: world.settled)
    assert causes(world.request(next(rooms)), 10) == [None, None]
    before, names = world.descriptors, case.split(", ")
    if at_work:
        world.things["prefill agent"].fault("withhold", "mamba")
        answers = world.request(next(rooms))
        kit.until(lambda: [row["peer_pod"] for row in world.agents[0].transfers()] == ["decode"])
        kit.until(lambda: "kv pulled" in world.agents[0].transfers()[0]["components"])
    world.restart(names)
    if at_work:
        told = causes(answers, 2)
        assert None not in told
        assert set(told) <= {"PeerLost", "EngineLost", "killed"}
        if "prefill agent" not in names:
            world.things["prefill agent"].fault("lift")
    kit.until(lambda: world.settled, within_s=15)
    assert causes(world.request(next(rooms)), 10) == [None, None]
    kit.until(lambda: world.settled)
    after = world.descriptors
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)
