"""The operator as a process of this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, Self

_END_S: Final = 15.0


class OperatorProcess:
    """`python -m disagg_operator` against a cluster; use as a context manager. What it says is in
    the file `log`.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *,
        namespace: str,
        log: Path,
        log_level: str = "INFO",
        lease: str = "",
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._port = _free_port()
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "DISAGG_AGENT_IMAGE": "agent:1",
            "DISAGG_ENGINE_IMAGE": "engine:1",
            "DISAGG_ROUTER_IMAGE": "router:1",
            "DISAGG_WATCH_NAMESPACES": namespace,
            "DISAGG_OPERATOR_PORT": str(self._port),
            "DISAGG_LOG_LEVEL": log_level,
            "DISAGG_LEASE": lease,
        }

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "disagg_operator"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """By SIGKILL: it has no chance to finish what it is at."""
        self.process.kill()
        self.process.wait()

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of an answer of its HTTP port; OSError while there is none."""
        url = f"http://127.0.0.1:{self._port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a metric's series; 0 while the process does not answer yet."""
        with contextlib.suppress(OSError):
            lines = self.ask("/metrics")[1].splitlines()
            return sum(
                float(line.rpartition(" ")[2])
                for line in lines
                if line.partition("{")[0].partition(" ")[0] == name
            )
        return 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
