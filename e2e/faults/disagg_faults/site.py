"""Two prefill pods and a decode pod: hosts, agents, engines, and a relay before each prefill agent."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from disagg_faults.engine_process import EngineProcess
from disagg_faults.errors import HangError
from disagg_faults.net import INTERFACE, Host, Network
from disagg_faults.plan import ARENA_BYTES, DECODE, PODS, PREFILLS, SCATTER_S, STAGE_S
from disagg_faults.relay import CONNECT_S, FaultyRelay
from disagg_transfer.local import LocalAgent

_MBIT_S: Final = 1600  # 200 MB/s: a large request is under way for 0.1 s
_START_S: Final = 60.0
# Bytes go over the hosts' network, where packets can be lost; shared memory would pass it by.
_UCX: Final = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": INTERFACE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an agent's process takes of the machine."""

    fds: int
    threads: int
    rss_bytes: int


class Site:
    """Use as a context manager; inside it every pod serves."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._open = contextlib.ExitStack()
        self.agents: dict[str, LocalAgent] = {}
        self.engines: dict[str, EngineProcess] = {}
        self.relays: dict[str, FaultyRelay] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self.network = opened.enter_context(Network(PODS))
            for pod in PREFILLS:
                self.network.throttle(pod, mbit_s=_MBIT_S)
                self._launch(opened, pod, ())
                self.relays[pod] = self._relay(opened, pod)
            self._launch(opened, DECODE, tuple(self.peer(pod) for pod in PREFILLS))
            self.await_health(within_s=_START_S)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def peer(self, pod: str) -> str:
        """What decode calls a prefill agent: the relay before it."""
        return f"127.0.0.1:{self.relays[pod].port}"

    def load(self, pod: str) -> Load:
        process = Path("/proc", str(self.agents[pod].process.pid))
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Load(
            fds=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            rss_bytes=int(status["RssAnon"].split()[0]) * 1024,
        )

    def await_health(self, *, within_s: float) -> None:
        """Every pod ready, nothing in flight, every byte of every arena free; HangError else."""
        states: dict[str, str] = {}

        def well() -> bool:
            for pod in PODS:
                states[pod] = self._ailment(pod)
            return not any(states.values())

        if not until(well, within_s=within_s):
            told = "; ".join(f"{pod}: {state}" for pod, state in states.items() if state)
            raise HangError(f"not healed within {within_s:g} s: {told}")

    def _ailment(self, pod: str) -> str:
        """What keeps a pod from being as good as new; empty when nothing does."""
        try:
            report = self.agents[pod].status()
        except (OSError, ValueError) as error:
            return f"its agent does not answer, or not to the end: {error}"
        if not report.ready:
            return f"{report.not_ready_reason}: {report.not_ready_message}"
        others = (DECODE,) if pod in PREFILLS else PREFILLS
        up = {peer.pod for peer in report.peers if peer.state == "up" and not peer.detail}
        if not up.issuperset(others):
            return f"peers {report.peers}"
        if report.inflight or report.arena.used:
            return (
                f"{report.inflight} requests in flight, {report.arena.used} bytes in use, "
                f"{report.arena.unsettled} unsettled: {self.agents[pod].transfers()}"
            )
        return ""

    def _launch(self, opened: contextlib.ExitStack, pod: str, peers: tuple[str, ...]) -> None:
        role, folder = pod.split("-", maxsplit=1)[0], self._folder / pod
        agent = LocalAgent(
            folder,
            role=role,
            pod=pod,
            peers=peers,
            arena_bytes=ARENA_BYTES,
            timeouts={"default": STAGE_S, "stages": {"queue": STAGE_S, "scatter": SCATTER_S}},
            faults=True,
            env=_UCX,
            launch=self.network.hosts[pod].launch,
        )
        self.agents[pod] = opened.enter_context(agent)
        engine = EngineProcess(
            f"engine of {pod}",
            role=role,
            socket_path=agent.socket_path,
            seed=self._seed,
            log=folder / "engine.log",
        )
        engine.start()
        opened.callback(engine.kill)
        self.engines[pod] = engine

    def _relay(self, opened: contextlib.ExitStack, pod: str) -> FaultyRelay:
        decode, prefill, agent = self._host(DECODE), self._host(pod), self.agents[pod]

        def connect() -> Any:
            return decode.connect((prefill.address, agent.control_port), timeout_s=CONNECT_S)

        relay = FaultyRelay(decode.listen(), connect=connect)
        opened.callback(relay.close)
        return relay

    def _host(self, pod: str) -> Host:
        return self.network.hosts[pod]


def until(holds: Callable[[], bool], *, within_s: float, every_s: float = 0.05) -> bool:
    """Whether it has become true in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(every_s)
    return True
