"""What this container has of RDMA, read from the kernel's own files."""

import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from disagg_transfer.transport import RdmaFacts

_IPC_LOCK: Final = 1 << 14  # of the capabilities in /proc/self/status


def rdma_facts(env: Mapping[str, str], *, arena_bytes: int, root: Path = Path("/")) -> RdmaFacts:
    devices = root / "sys/class/infiniband"
    return RdmaFacts(
        devices=tuple(sorted(_names(devices))),
        active=tuple(sorted(_active(devices))),
        verbs=any(name.startswith("uverbs") for name in _names(root / "dev/infiniband")),
        memlock_bytes=_memlock(root),
        arena_bytes=arena_bytes,
        tls=env.get("UCX_TLS", ""),
        net_devices=env.get("UCX_NET_DEVICES", ""),
    )


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _active(devices: Path) -> Iterator[str]:
    """`mlx5_0:1` of every port whose state file says `4: ACTIVE`."""
    for device in _names(devices):
        for port in _names(devices / device / "ports"):
            if _text(devices / device / "ports" / port / "state").startswith("4:"):
                yield f"{device}:{port}"


def _memlock(root: Path) -> int | None:
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) & _IPC_LOCK:
            return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
