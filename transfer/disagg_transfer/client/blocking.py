"""The blocking client: one socket to the agent, any number of threads calling."""

import threading
from collections.abc import Mapping, Sequence

from disagg_transfer.client.values import Arrival, Component, Extent


class AgentClient:
    """A registered engine; when the agent goes, `lost` is set and `connect` has to be called again.

    Every pending call then raises TransferFailed with cause EngineLost.
    """

    lost: threading.Event

    @classmethod
    def connect(
        cls,
        socket_path: str,
        *,
        role: str,
        model: str,
        components: Sequence[Component],
        page_size: int,
        timeout_s: float,
    ) -> "AgentClient":
        """Register with the agent, retrying until its socket is there.

        Raises RegistrationError when the agent refuses, AgentUnavailableError when it is late.
        """
        raise NotImplementedError

    def begin(self, room: int) -> None:
        """Prefill starts on this room; TransferFailed when the room is in flight or given up."""
        raise NotImplementedError

    def reserve(self, room: int, nbytes: int, *, timeout_s: float) -> Extent:
        """Arena memory for one payload; ArenaFull when none is free in time."""
        raise NotImplementedError

    def offer(
        self,
        room: int,
        component: str,
        extent: Extent,
        *,
        items: int,
        last: bool,
        aux: bytes = b"",
    ) -> None:
        """Hand over one component; the last one of the request says so and carries aux."""
        raise NotImplementedError

    def wait_released(self, room: int, timeout_s: float) -> None:
        """Return when decode has taken everything; TransferFailed otherwise."""
        raise NotImplementedError

    def abort(self, room: int, detail: str) -> None:
        """Give the room up on either role; the peer is told. No view of it is touched after."""
        raise NotImplementedError

    def pull(self, room: int, *, peer: str, expect: Mapping[str, int]) -> Arrival:
        """Wait for every component of the room, whole; `peer` is bootstrap_host:bootstrap_port."""
        raise NotImplementedError

    def release(self, room: int) -> None:
        """The payloads are scattered. TransferFailed here means that they must not be used."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
