"""The cluster's addresses and ports.

198.18.0.0/15 is the benchmarking range (RFC 2544): nothing private or public is shadowed by it.
"""

import json
import random
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from disagg_cluster.errors import MachineError

BRIDGE = "disagg0"
POD_NETWORK = "198.18.0.0/16"
LAST_REAL_POD_ADDRESS = "198.18.127.254"
KWOK_POD_NETWORK = "198.18.128.0/17"  # said by simulated pods, answered by nothing
NODE_ADDRESS = "198.18.0.1"  # the bridge's own: pods reach the API server, DNS and kubelet here
NODE_PREFIX = 16
SERVICE_NETWORK = "198.19.0.0/16"
API_SERVICE_ADDRESS = "198.19.0.1"
DNS_SERVICE_ADDRESS = "198.19.0.10"
CLUSTER_DOMAIN = "cluster.local"
NODE_NAME = "disagg-node"
LOOPBACK = "127.0.0.1"
DEFAULT_BASE_PORT = 16440
# Second octets of loopback networks for pods that are simulated, by kwok and by tests.
KWOK_OCTETS = range(64, 128)
TEST_OCTETS = range(2, 64)
_HELD_PORT = DEFAULT_BASE_PORT - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int
    kubelet: int
    kubelet_health: int
    proxy_health: int
    proxy_metrics: int
    dns_health: int
    dns_ready: int
    kwok: int

    @classmethod
    def from_base(cls, base: int) -> Self:
        return cls(**{field.name: base + index for index, field in enumerate(fields(cls))})

    @classmethod
    def free(cls) -> Self:
        """Whatever the machine has free now; remembered in the cluster's settings."""
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in fields(cls)]
            for one in sockets:
                one.bind((LOOPBACK, 0))
            numbers = [int(one.getsockname()[1]) for one in sockets]
        return cls(**dict(zip((field.name for field in fields(cls)), numbers, strict=True)))


@contextmanager
def own_network(octets: range) -> Iterator[int]:
    """The N of a network 127.N.0.0/16 that nobody else here has: whoever simulates its pods can
    answer for them, without root.

    A socket bound in it holds it, so that it is free again however the process ends. MachineError
    when all are taken.
    """
    for octet in random.sample(octets, len(octets)):
        with socket.socket() as holder:
            try:
                holder.bind((f"127.{octet}.255.254", _HELD_PORT))
            except OSError:
                continue
            yield octet
            return
    raise MachineError(
        f"all loopback networks 127.{octets.start} to 127.{octets.stop - 1} are taken, or port "
        f"{_HELD_PORT} is; end the clusters and tests that have them"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a cluster was brought up as: a later `up` keeps to it."""

    ports: Ports
    with_node: bool
    kwok_nodes: int = 0
    kwok_network: str = KWOK_POD_NETWORK

    @property
    def kwok_on_loopback(self) -> bool:
        return self.kwok_network != KWOK_POD_NETWORK

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                ports=Ports(**raw["ports"]),
                with_node=bool(raw["with_node"]),
                kwok_nodes=int(raw["kwok_nodes"]),
                kwok_network=str(raw.get("kwok_network", KWOK_POD_NETWORK)),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise MachineError(
                f"{path} is not what `up` writes ({error}); run `disagg-cluster down` and then `up`"
            ) from error


def taken_port(wanted: Iterable[int]) -> int | None:
    """The first of these that another program listens on."""
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return port
    return None
