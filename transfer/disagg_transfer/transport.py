"""Which transport UCX chose for reads, from what it prints, and why it is not RDMA: pure.

With PROTO_INFO on, UCX prints a table each time it chooses protocols for an endpoint configuration,
the first time that configuration is used:

    [time] [host:pid:thread]   +--------+--------------------+-----------+
    [time] [host:pid:thread]   | ns/pod inter-node cfg#2                 |
    [time] [host:pid:thread]   | remote memory read by ucp_get*(multi) into host memory from host |
    [time] [host:pid:thread]   +--------+--------------------+-----------+
    [time] [host:pid:thread]   | Range  |    Description     |  Config   |
    [time] [host:pid:thread]   +--------+--------------------+-----------+
    [time] [host:pid:thread]   | 0..inf | software emulation | tcp/eth0  |

A second peer of the same configuration prints nothing, and no table names a peer. So a table is
tied to what UCX estimates a probing read costs: equal estimates mean the same configuration.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from disagg_transfer.contract import Transport

_LINE: Final = re.compile(r"\[\d+\.\d+\] \[(?P<thread>[^\]]{1,300})\] +(?P<text>\S.*)\Z")
_TITLE: Final = re.compile(r".* (?:self|intra-node|inter-node) cfg#\d+\Z")
_READ: Final = "remote memory read by ucp_get"
_LANE: Final = re.compile(r"\b([a-z][a-z0-9_]*)/\S")
_MAX_LINE: Final = 4096
_MAX_CONFIGURATION: Final = 200
_MAX_THREADS: Final = 64

# The first that a configuration names is what it is called: a mix is as slow as its slowest part.
_FAMILIES: Final = (
    (Transport.TCP, frozenset({"tcp"})),
    (Transport.CMA, frozenset({"cma"})),
    (Transport.SHM, frozenset({"sysv", "posix", "knem", "xpmem", "self"})),
    (Transport.RDMA, frozenset({"rc", "dc", "ud", "gga", "srd"})),
    (Transport.CUDA_IPC, frozenset({"cuda"})),
)
_STAGING: Final = frozenset({"cuda_copy", "gdr_copy", "rocm_copy"})  # between host and device


def family(configuration: str) -> Transport:
    """Of a table's last column, such as `rc_mlx5/mlx5_0:1` or `52% tcp/lo + 48% tcp/eth0`."""
    lanes = {name for name in _LANE.findall(configuration) if name not in _STAGING}
    heads = lanes | {name.partition("_")[0] for name in lanes}
    for transport, names in _FAMILIES:
        if heads & names:
            return transport
    return Transport.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTable:
    """How reads of one configuration go, at the largest size."""

    transport: Transport
    configuration: str  # `tcp/eth0`
    emulated: bool  # messages and copies instead of a read by the adapter


@dataclass(slots=True)
class _Open:
    """A table whose rows are coming in; they are sorted by size, and payloads are large."""

    is_read: bool = False
    last: ReadTable | None = None


@dataclass(slots=True)
class UcxOutput:
    """Takes UCX's text as it comes, cut anywhere."""

    _rest: str = ""
    _open: dict[str, _Open] = field(default_factory=dict)  # threads' tables may interleave
    _closed: list[ReadTable] = field(default_factory=list)

    def feed(self, text: str) -> Iterator[str]:
        """Messages that are no part of a table, such as UCX's warnings."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._rest = self._rest[-_MAX_LINE:]
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                if line.strip():
                    yield line
            elif not self._take(match["thread"], match["text"].strip()):
                yield match["text"]

    def read_tables(self) -> tuple[ReadTable, ...]:
        """Those that ended since the last call."""
        found, self._closed = tuple(self._closed), []
        return found

    def _take(self, thread: str, text: str) -> bool:
        table = self._open.get(thread)
        if text.startswith("+-"):
            if table is not None and table.last is not None:
                self._closed.append(table.last)
                del self._open[thread]
            return True
        if not (text.startswith("|") and text.endswith("|")):
            return False
        cells = [cell.strip() for cell in text[1:-1].split("|")]
        if _TITLE.match(cells[0]):
            if len(self._open) >= _MAX_THREADS:
                self._open.clear()
            self._open[thread] = _Open()
        elif table is not None and len(cells) == 1:
            table.is_read = cells[0].startswith(_READ)
        elif table is not None and table.is_read and len(cells) == 3 and ".." in cells[0]:
            table.last = ReadTable(
                transport=family(cells[2]),
                configuration=cells[2][:_MAX_CONFIGURATION],
                emulated="emulation" in cells[1],
            )
        return True


@dataclass(slots=True)
class Choices:
    """What has been learned: the estimated cost of a probing read -> its table."""

    output: UcxOutput = field(default_factory=UcxOutput)
    _known: dict[ReadTable, None] = field(default_factory=dict)
    _by_cost: dict[int, ReadTable] = field(default_factory=dict)

    def absorb(self) -> None:
        """Before a probing read: tables printed until now are of other reads."""
        self._known |= dict.fromkeys(self.output.read_tables())

    def resolve(self, cost: int) -> ReadTable | None:
        """After the probing read, with what UCX estimates it to cost. None: not known."""
        fresh = dict.fromkeys(self.output.read_tables())
        self._known |= fresh
        found = self._by_cost.get(cost) or _agreed(fresh) or _agreed(self._known)
        if found is not None:
            self._by_cost[cost] = found
        return found


def _agreed(tables: Iterable[ReadTable]) -> ReadTable | None:
    found = tuple(tables)
    return found[-1] if len({table.transport for table in found}) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaFacts:
    """What this container has of RDMA, and what UCX was told."""

    devices: tuple[str, ...]  # of /sys/class/infiniband
    active: tuple[str, ...]  # `mlx5_0:1`, the ports that are up
    verbs: bool  # /dev/infiniband/uverbs* is in the container
    memlock_bytes: int | None  # None: unlimited, or allowed by IPC_LOCK
    arena_bytes: int
    tls: str  # UCX_TLS; empty: everything
    net_devices: str  # UCX_NET_DEVICES; empty: everything


def why_not_rdma(table: ReadTable | None, facts: RdmaFacts) -> str:
    """In words, with what to do; empty when reads do go over RDMA."""
    if table is not None and table.transport is Transport.RDMA:
        return f"{table.configuration}: reads are emulated by messages" if table.emulated else ""
    return next(_obstacles(facts), None) or _unchosen(table, facts)


def _obstacles(facts: RdmaFacts) -> Iterator[str]:
    """What rules RDMA out here, whatever the peer has; most basic first."""
    names, ports = ", ".join(facts.devices), ", ".join(facts.active)
    memlock, arena = facts.memlock_bytes, facts.arena_bytes
    if not facts.devices:
        yield "no RDMA device in this pod; request one for the agent's container"
    if not facts.verbs:
        yield f"RDMA devices {names} have no /dev/infiniband/uverbs* in the agent's container"
    if not facts.active:
        yield f"no port of RDMA devices {names} is active"
    if memlock is not None and memlock < arena:
        yield (
            f"memlock limit {memlock} bytes < arena {arena} bytes; raise LimitMEMLOCK of the "
            "container runtime, or run the agent as root with IPC_LOCK"
        )
    if facts.net_devices and not _names_rdma(facts):
        yield f"UCX_NET_DEVICES={facts.net_devices} names no active RDMA port; active: {ports}"
    if facts.tls and not _allows_rdma(facts.tls):
        yield f"UCX_TLS={facts.tls} leaves out rc, dc and ud"


def _unchosen(table: ReadTable | None, facts: RdmaFacts) -> str:
    ports = ", ".join(facts.active)
    if table is None:
        return f"RDMA ports {ports} are active; UCX has not said what it uses"
    return (
        f"RDMA ports {ports} are active, but UCX chose {table.configuration}: the peer has no RDMA "
        "device on the same fabric, or it is closer than the fabric"
    )


def _names_rdma(facts: RdmaFacts) -> bool:
    wanted = {name.strip() for name in facts.net_devices.split(",")}
    if "all" in wanted:
        return True
    return any(port in wanted or port.partition(":")[0] in wanted for port in facts.active)


def _allows_rdma(tls: str) -> bool:
    negated = tls.startswith("^")
    words = {word.strip() for word in tls.removeprefix("^").split(",")}
    heads = words | {word.partition("_")[0] for word in words}
    named = heads & {"rc", "dc", "ud", "ib", "srd"}
    if negated:
        return not {"rc", "dc", "ud"} <= heads and "ib" not in heads
    return bool(named) or "all" in words
