"""Agents as local processes, for tests and experiments without a cluster."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from disagg_transfer.contract import Report


class LocalAgent:
    """A `disagg-agent serve` process on loopback; use as a context manager.

    Ports are chosen by the agent. Agents that should talk share deployment, revision and key.
    """

    socket_path: str
    control_port: int  # valid inside the context
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
        arena_bytes: int = 64 << 20,
        timeouts: Mapping[str, Any] | None = None,  # as DISAGG_TIMEOUTS
        integrity: str = "always",
        faults: bool = False,  # DISAGG_FAULT_SWITCH=enabled
        env: Mapping[str, str] | None = None,  # wins over everything above
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    def report(self) -> Report:
        """The agent's report now, by HTTP."""
        raise NotImplementedError

    def fault(self, *words: str) -> None:
        """As `disagg-agent fault ...`: ("withhold", "mamba"), ("zero", "kv"), ("lift",)."""
        raise NotImplementedError

    def restart(self) -> None:
        """Kill the process and start it again on the same socket and control port."""
        raise NotImplementedError
