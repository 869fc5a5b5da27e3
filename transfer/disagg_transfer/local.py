"""Agents as local processes, for tests and experiments without a cluster."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from disagg_transfer import contract
from disagg_transfer.cli import ask
from disagg_transfer.contract import Report, parse_report, report_token
from disagg_transfer.errors import AgentUnavailableError, SettingsError
from disagg_transfer.settings import read_keys

START_S: Final = 60.0
_STOP_S: Final = 10.0


class LocalAgent:
    """A `disagg-agent serve` process on loopback; use as a context manager.

    Ports are chosen by the agent. Agents that should talk share deployment, revision and key.
    """

    control_port: int  # valid inside the context; 0 for decode, which does not listen
    http_port: int
    process: "subprocess.Popen[bytes]"

    def __init__(
        self,
        folder: Path,
        *,
        role: str,
        pod: str = "",  # default: the role
        peers: Sequence[str] = (),  # decode: "127.0.0.1:<control_port of a prefill agent>"
        deployment: str = "local",
        revision: str = "r1",
        key: bytes = b"local key for tests only",
        state_types: Sequence[str] = (),
        arena_bytes: int = 64 << 20,  # of all ranks together
        ranks: int = 1,  # engine ranks of this pod
        node: int = 0,  # of this pod in its group
        group: str = "",  # default: the pod
        timeouts: Mapping[str, Any] | None = None,  # as DISAGG_TIMEOUTS
        integrity: str = "always",
        faults: bool = False,  # DISAGG_FAULT_SWITCH=enabled
        env: Mapping[str, str] | None = None,  # wins over everything above
        launch: Sequence[str] = (),  # before the command: "ip", "netns", "exec", NAME; no HTTP then
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.socket_path = str(folder / "agent.sock")
        self._key, self._launch = key, tuple(launch)
        self._env = {
            contract.ENV_NAMESPACE: "local",
            contract.ENV_DEPLOYMENT: deployment,
            contract.ENV_REVISION: revision,
            contract.ENV_ROLE: role,
            contract.ENV_POD: pod or role,
            contract.ENV_GROUP: group or pod or role,
            contract.ENV_RANK: str(node),
            contract.ENV_RANKS: str(ranks),
            contract.ENV_SOCKET: self.socket_path,
            contract.ENV_CONTROL_PORT: "0",
            contract.ENV_HTTP_PORT: "0",
            contract.ENV_ARENA_BYTES: str(arena_bytes),
            contract.ENV_KEY_FILE: str(folder / "key"),
            contract.ENV_PEER_SERVICE: ",".join(peers),
            contract.ENV_STATE_TYPES: ",".join(state_types),
            contract.ENV_TIMEOUTS: json.dumps(dict(timeouts or {})),
            contract.ENV_INTEGRITY: integrity,
            contract.ENV_FAULT_SWITCH: "enabled" if faults else "disabled",
            **(env or {}),
        }

    def __enter__(self) -> Self:
        (self.folder / "key").write_bytes(self._key)
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def report(self) -> Report:
        """The agent's report now, by HTTP."""
        return parse_report(self.get(contract.PATH_REPORT))

    def status(self) -> Report:
        """The same by the admin socket, which is here wherever the agent was launched."""
        return parse_report(json.dumps(self._ask("report")["report"]).encode())

    def get(self, path: str) -> bytes:
        """One of the agent's HTTP paths; urllib.error.HTTPError when it is not a 200."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(asked, timeout=70) as response:
            data: bytes = response.read()
        return data

    @property
    def token(self) -> str:
        """Of the oldest key in its file, which it holds already if the file was changed just now."""
        return report_token(read_keys(self.folder / "key")[-1])

    def fault(self, *words: str) -> None:
        """As `disagg-agent fault ...`: ("withhold", "mamba"), ("zero", "kv"), ("lift",)."""
        answer = self._ask("fault", *words)
        if "error" in answer:
            raise SettingsError(answer["error"])

    def transfers(self) -> list[dict[str, Any]]:
        """The requests in flight, as `disagg-agent transfers` lists them."""
        rows: list[dict[str, Any]] = self._ask("transfers")["transfers"]
        return rows

    def restart(self) -> None:
        """Kill the process and start it again on the same socket and control port."""
        self.process.kill()
        self.process.wait()
        self._env[contract.ENV_CONTROL_PORT] = str(self.control_port)
        self._start()

    def _ask(self, *words: str) -> Any:
        return ask(self.folder / "admin.sock", words)

    def _start(self) -> None:
        (self.folder / "admin.sock").unlink(missing_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._launch, sys.executable, "-m", "disagg_transfer.cli", "serve"],
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._await_ports(time.monotonic() + START_S)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _await_ports(self, deadline: float) -> None:
        needed = ("http", "control") if self._env[contract.ENV_ROLE] == "prefill" else ("http",)
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AgentUnavailableError(f"the agent ended at its start:\n{self.log}")
            try:
                ports = self._ask("report")["ports"]
            except OSError:
                ports = {}
            if all(ports.get(name) for name in needed) and Path(self.socket_path).exists():
                self.control_port, self.http_port = ports["control"], ports["http"]
                return
            time.sleep(0.02)
        raise AgentUnavailableError(f"the agent did not start in {START_S:.0f} s:\n{self.log}")
