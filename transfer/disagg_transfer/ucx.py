"""What NIXL tells UCX, its transport layer: typed, pure, and the same for agents and baselines.

`engine_config` goes through NIXL, which splits it at commas; lists therefore go by environment.
Whoever sets a `UCX_*` variable knows better: the environment wins over both.

The segment sizes are UCX's 8 KiB by default, one system call each. Measured on two cores, READ of
256 MiB over loopback TCP: 8 KiB 1.05 GB/s, 64 KiB 2.5, 256 KiB 2.6, 1 MiB 2.1 and noisy, and a
READ of 64 KiB takes 160, 85, 85 and 110 us.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from disagg_transfer.contract import DATA_PORTS

ENV_TLS: Final = "UCX_TLS"
ENV_DEVICES: Final = "UCX_NET_DEVICES"


class Transport(StrEnum):
    """Which transports UCX may use; what it does use is for preflight to find out."""

    ANY = "any"
    RDMA = "rdma"  # a fabric that is missing or broken is an error, never a fallback to TCP
    TCP = "tcp"


# CUDA's two carry device memory; UCX leaves out, with a warning, what a machine does not have.
_TLS: Final = {Transport.RDMA: "rc,dc,cuda_copy,cuda_ipc", Transport.TCP: "tcp,cuda_copy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UcxSettings:
    transport: Transport = Transport.ANY
    devices: tuple[str, ...] = ()  # as UCX names them, "mlx5_0:1" or "eth0"; empty: any
    segment_bytes: int = 256 << 10  # of TCP: what one send or receive takes
    # First and last port that UCX may listen on; it takes a free one of them for each device.
    ports: tuple[int, int] = DATA_PORTS
    # A black-holed TCP peer is an error after this, not after the kernel's quarter of an hour.
    tcp_timeout_s: int = 5

    @property
    def engine_config(self) -> str:
        return ",".join(
            (
                f"TCP_USER_TIMEOUT={self.tcp_timeout_s}s",
                f"TCP_PORT_RANGE={self.ports[0]}-{self.ports[1]}",
                f"TCP_TX_SEG_SIZE={self.segment_bytes}",
                f"TCP_RX_SEG_SIZE={self.segment_bytes}",
            )
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables to set, where they are not set already, while a NIXL agent is made."""
        named = {ENV_TLS: _TLS[self.transport]} if self.transport in _TLS else {}
        return named | ({ENV_DEVICES: ",".join(self.devices)} if self.devices else {})

    def __str__(self) -> str:
        devices = ", ".join(self.devices) or "any"
        ports = f"{self.ports[0]}-{self.ports[1]}"
        return f"transport {self.transport}, devices {devices}, data ports {ports}"
