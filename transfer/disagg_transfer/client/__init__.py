"""What an engine embeds to hand a request's cache to, or take it from, its pod's agent."""

from disagg_transfer.client.blocking import AgentClient, ChunkStream
from disagg_transfer.client.values import Arrival, Chunk, Component, Extent, Payload
from disagg_transfer.errors import (
    AgentUnavailableError,
    ArenaFull,
    RegistrationError,
    TransferFailed,
    UnknownStateTypeError,
)

__all__ = [
    "AgentClient",
    "AgentUnavailableError",
    "ArenaFull",
    "Arrival",
    "Chunk",
    "ChunkStream",
    "Component",
    "Extent",
    "Payload",
    "RegistrationError",
    "TransferFailed",
    "UnknownStateTypeError",
]
