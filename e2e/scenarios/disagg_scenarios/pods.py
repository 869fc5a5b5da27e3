"""Inside the pods of the embedded node: their processes, seen from the host, and their agents' reports."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from disagg_scenarios.kube import Kubectl


class NoSuchProcessError(Exception):
    """No process of that pod has such a command line."""


def kill_in_pod(kubectl: Kubectl, pod: str, command: str) -> int:
    """SIGKILL, from the host, of the pod's process whose command line holds a text; returns its pid.

    From inside its own PID namespace the first process of a container cannot be killed.
    """
    uid = kubectl.get("pod", pod)["metadata"]["uid"]
    pid = find_process(uid, command)
    os.kill(pid, signal.SIGKILL)
    return pid


def find_process(pod_uid: str, command: str) -> int:
    """The lowest pid in a pod whose command line holds a text; raises NoSuchProcessError."""
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if pod_uid in _read(entry / "cgroup") and command in _read(entry / "cmdline"):
            return int(entry.name)
    raise NoSuchProcessError(f"no process with {command!r} in pod {pod_uid}")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def report(kubectl: Kubectl, pod: str) -> dict[str, Any]:
    """What a pod's agent reports now."""
    found: dict[str, Any] = json.loads(
        kubectl.exec(pod, "transfer-agent", "disagg-agent", "status", "--json")
    )
    return found
