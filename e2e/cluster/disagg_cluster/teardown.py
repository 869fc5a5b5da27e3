"""Ends what a node leaves on a machine: pods' processes, shims, mounts, cgroups, sockets.

Nothing is asked of kubelet or containerd: `down` also has to work when they are dead.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from disagg_cluster.errors import ComponentError
from disagg_cluster.layout import Layout
from disagg_cluster.machine import CGROUP

SHIM = "containerd-shim"
# Places that containerd, kubelet and the CNI library use whatever their settings say.
SOCKET_FOLDERS = (Path("/run/containerd/s"), Path("/var/lib/kubelet/device-plugins"))
LOG_LINKS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
EMPTIED = (
    "/run/containerd/s",
    "/run/containerd",
    "/var/log/containers",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/lib/cni/results",
    "/var/lib/cni",
)
GONE_WITHIN_S = 20.0


def cgroup_folders(name: str, *, root: Path = CGROUP) -> list[Path]:
    """Ours in every hierarchy, deepest first."""
    tops = [root / name, *(child / name for child in root.iterdir())]
    found: list[Path] = []
    for top in tops:
        if top.is_dir():
            found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def make_cgroups(name: str, *, root: Path = CGROUP) -> None:
    """Kubelet refuses a cgroup root that is not there."""
    if (root / "cgroup.controllers").exists():
        (root / name).mkdir(exist_ok=True)
        return
    for hierarchy in root.iterdir():
        if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink():
            (hierarchy / name).mkdir(exist_ok=True)


def pod_pids(layout: Layout) -> set[int]:
    pids: set[int] = set()
    for folder in cgroup_folders(layout.cgroup):
        with contextlib.suppress(OSError):
            pids |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
    return pids


def shim_pids(layout: Layout) -> set[int]:
    """containerd's shims of this cluster: they carry the path of its socket as an argument."""
    pids: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            is_shim = Path(words[0].decode(errors="replace")).name.startswith(SHIM)
            if is_shim and str(layout.containerd_socket).encode() in words:
                pids.add(int(entry.name))
    return pids


def _kill_until_gone(what: str, find: Callable[[], Iterable[int]]) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while pids := sorted(find()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ComponentError(f"{what} do not end: {pids}; run `disagg-cluster down` again")
        time.sleep(0.05)


def mounts_below(folder: Path, table: str) -> list[str]:
    """Mount points at or below a folder, innermost first, from the text of /proc/self/mounts."""
    points = [line.split()[1].encode().decode("unicode_escape") for line in table.splitlines()]
    below = [point for point in points if Path(point).is_relative_to(folder)]
    return sorted(below, key=len, reverse=True)


def unmount_below(folder: Path) -> None:
    table = Path("/proc/self/mounts").read_text(encoding="utf-8")
    for point in mounts_below(folder, table):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _remove_dead_sockets() -> None:
    bound = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    for folder in SOCKET_FOLDERS:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_socket() and str(path) not in bound:
                path.unlink()


def _remove_log_links(layout: Layout) -> None:
    for link in LOG_LINKS.iterdir() if LOG_LINKS.is_dir() else ():
        if link.is_symlink() and link.readlink().is_relative_to(layout.logs):
            link.unlink()


def _remove_cni_results(layout: Layout) -> None:
    """Each names the network namespace it is of, which lies in our folder."""
    for path in CNI_RESULTS.iterdir() if CNI_RESULTS.is_dir() else ():
        if str(layout.root) in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()


def _remove_when_empty(folders: Iterable[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def end_pods(layout: Layout) -> None:
    """After kubelet and containerd ended, so that nothing starts them again."""
    _kill_until_gone("containers", lambda: pod_pids(layout))
    _kill_until_gone("containerd shims", lambda: shim_pids(layout))


def remove_traces(layout: Layout) -> None:
    unmount_below(layout.root)
    for folder in cgroup_folders(layout.cgroup):
        with contextlib.suppress(OSError):
            folder.rmdir()
    _remove_dead_sockets()
    _remove_log_links(layout)
    _remove_cni_results(layout)
    _remove_when_empty(EMPTIED)
