"""Everything this package raises on purpose.

TransferError
├── SettingsError           an environment value is refused
│   └── StateTypeError      an installed state type is refused
├── WireError               bytes that are no valid frame or message
├── AuthenticationError     the peer does not hold this deployment's key, or is not of it
├── ArenaError              an extent is used against the rules
├── FabricError             NIXL said no
│   └── PeerDisconnectedError
├── AgentUnavailableError   no agent answered on the socket in time
├── RegistrationError       the agent refuses this engine
│   └── UnknownStateTypeError
├── DeviceError             a GPU, or what is asked of one, is not there
├── ReshardingError         a state cannot be shared out over so many ranks
└── TransferFailed          one request ended, with its cause and stage
    └── ArenaFull
"""

from disagg_transfer.contract import Cause, Stage


class TransferError(Exception):
    pass


class SettingsError(TransferError):
    pass


class StateTypeError(SettingsError):
    pass


class WireError(TransferError):
    pass


class AuthenticationError(TransferError):
    pass


class ArenaError(TransferError):
    pass


class FabricError(TransferError):
    pass


class PeerDisconnectedError(FabricError):
    pass


class AgentUnavailableError(TransferError):
    pass


class RegistrationError(TransferError):
    pass


class UnknownStateTypeError(RegistrationError):
    pass


class DeviceError(TransferError):
    pass


class ReshardingError(TransferError):
    pass


class TransferFailed(TransferError):  # noqa: N818  (an outcome with a cause, named as such)
    """A request ended without its bytes; nothing of it may be used."""

    def __init__(
        self,
        cause: Cause,
        *,
        stage: Stage,
        detail: str,
        state_type: str | None = None,
        component: str | None = None,
        peer_pod: str = "",
    ) -> None:
        where = f" of state type {state_type}" if state_type else ""
        peer = f" (peer {peer_pod})" if peer_pod else ""
        super().__init__(f"{cause} in stage {stage}{where}{peer}: {detail}")
        self.cause = cause
        self.stage = stage
        self.detail = detail
        self.state_type = state_type
        self.component = component
        self.peer_pod = peer_pod


class ArenaFull(TransferFailed):
    """No room in the arena in time; the request may be tried again later."""
