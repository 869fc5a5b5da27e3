"""The cluster as a user sees it: kubectl, with JSON in place of tables."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

POLL_S = 0.2

T = TypeVar("T")


class KubectlError(Exception):
    """kubectl said no; the text is its own."""


class WaitTimeoutError(Exception):
    """A condition did not come true before its deadline; the text names the last thing seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """kubectl bound to one kubeconfig and namespace."""

    program: Path
    kubeconfig: Path
    namespace: str

    def run(self, *args: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """Standard output of one kubectl call; raises KubectlError with what it said."""
        done = subprocess.run(
            [*self._prefix(), *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = json.loads(self.run("get", kind, name, "-o", "json"))
        return found

    def select(self, kinds: str, selector: str = "") -> Sequence[dict[str, Any]]:
        """The objects of some kinds with the given labels."""
        select = ["-l", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(self.run("get", kinds, *select, "-o", "json"))[
            "items"
        ]
        return items

    def apply(self, manifest: Mapping[str, Any]) -> str:
        """kubectl apply of one manifest given as a mapping."""
        return self.run("apply", "-f", "-", stdin=json.dumps(manifest))

    def exec(self, pod: str, container: str, *command: str, timeout_s: float = 120.0) -> str:
        """Standard output of a command in a container."""
        return self.run("exec", pod, "-c", container, "--", *command, timeout_s=timeout_s)

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[int]:
        """A local port that leads to a port of a pod or Service while the block runs."""
        local = _free_port()
        process = subprocess.Popen(
            [*self._prefix(), "port-forward", target, f"{local}:{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "Forwarding from" not in line:
                raise KubectlError(f"kubectl port-forward {target}: {line.strip()}")
            yield local
        finally:
            process.terminate()
            process.communicate(timeout=10)

    def _prefix(self) -> list[str]:
        return [
            str(self.program),
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self.namespace}",
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, look: Callable[[], T], met: Callable[[T], bool], timeout_s: float) -> T:
    """Poll until what is seen meets the predicate; the error names what was awaited and last seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        if met(seen):
            return seen
        if time.monotonic() > deadline:
            raise WaitTimeoutError(f"{what}: not after {timeout_s:.0f} s; last seen: {seen!r}")
        time.sleep(POLL_S)
