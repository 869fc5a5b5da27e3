"""The first exchange with the agent: who this engine is, and the arena in return.

The arena comes as a file descriptor beside the answer, or as a handle in it when it is on a GPU,
and is mapped once; every view is a slice of that mapping.
"""

import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from disagg_transfer.client.arena import ArenaView, OpenOnGpu
from disagg_transfer.client.values import Component
from disagg_transfer.codec import LENGTH, frame
from disagg_transfer.engine_messages import (
    ANSWERS,
    CALLS,
    ENGINE_PROTOCOL,
    MAX_ENGINE_FRAME_BYTES,
    Register,
    Registered,
    RegisteredComponent,
    Rejected,
)
from disagg_transfer.errors import (
    AgentUnavailableError,
    RegistrationError,
    UnknownStateTypeError,
    WireError,
)

_RETRY_S: Final = 0.05
# Names this process: two registrations of one engine are told from two engines.
_INSTANCE: Final = uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    socket: socket.socket
    arena: ArenaView


def connect(
    path: str,
    *,
    role: str,
    model: str,
    components: Sequence[Component],
    page_size: int,
    timeout_s: float,
    rank: int,
    ranks: int,
    on_gpu: OpenOnGpu | None = None,
) -> Connection:
    """Register with the agent, retrying until its socket is there. Blocking.

    Raises RegistrationError when the agent refuses, AgentUnavailableError when it is late.
    """
    register = Register(
        call=0,
        protocol=ENGINE_PROTOCOL,
        role=role,
        model=model,
        page_size=page_size,
        instance=_INSTANCE,
        rank=rank,
        ranks=ranks,
        components=tuple(_registered(component) for component in components),
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _register(path, register, deadline - time.monotonic(), on_gpu)
        except OSError as error:
            if time.monotonic() + _RETRY_S >= deadline:
                raise AgentUnavailableError(
                    f"no agent answered on {path} within {timeout_s:g} s: {error}"
                ) from error
        time.sleep(_RETRY_S)


def _register(
    path: str, register: Register, timeout_s: float, on_gpu: OpenOnGpu | None
) -> Connection:
    plain = socket.socket(socket.AF_UNIX)
    try:
        plain.settimeout(max(timeout_s, _RETRY_S))
        plain.connect(path)
        plain.sendall(frame(CALLS.encode(register)))
        arena = _receive_arena(plain, on_gpu)
        plain.settimeout(None)
    except BaseException:
        plain.close()
        raise
    return Connection(socket=plain, arena=arena)


def _registered(component: Component) -> RegisteredComponent:
    return RegisteredComponent(
        name=component.name,
        state_type=component.state_type,
        item_bytes=component.item_bytes,
        layers=component.layers,
        dtype=component.dtype,
        page_size=component.page_size,
    )


def _receive_arena(plain: socket.socket, on_gpu: OpenOnGpu | None) -> ArenaView:
    """The registration's answer; it is the only frame that carries a descriptor."""
    head, fds, _, _ = socket.recv_fds(plain, LENGTH.size, 2, socket.MSG_CMSG_CLOEXEC)
    try:
        if not head:
            raise ConnectionError("the agent closed the connection")
        head += _receive(plain, LENGTH.size - len(head))
        (length,) = LENGTH.unpack(head)
        if length > MAX_ENGINE_FRAME_BYTES:
            raise WireError(f"frame of {length} bytes; at most {MAX_ENGINE_FRAME_BYTES}")
        answer = ANSWERS.decode(_receive(plain, length))
        if isinstance(answer, Rejected):
            kind = UnknownStateTypeError if answer.unknown_state_type else RegistrationError
            raise kind(answer.detail)
        if not isinstance(answer, Registered) or len(fds) != (2 if answer.gpu is None else 1):
            raise WireError(f"the agent answered {type(answer).__name__} to Register")
        return _arena(answer, fds, on_gpu)
    finally:
        for fd in fds:
            os.close(fd)


def _arena(answer: Registered, fds: Sequence[int], on_gpu: OpenOnGpu | None) -> ArenaView:
    told = answer.gpu
    if told is None:
        return ArenaView.of_host(fds[0], answer.arena_bytes, lifeline=fds[1])
    if on_gpu is None:
        raise RegistrationError(
            f"the agent's arena is on GPU {told.uuid}: connect with "
            "on_gpu=disagg_transfer.engines.cuda.DeviceArena, or set DISAGG_ARENA_MEMORY=host"
        )
    opened = on_gpu(handle=told.handle, gpu=told.uuid, nbytes=answer.arena_bytes)
    return ArenaView.of_gpu(opened, lifeline=fds[0])


def _receive(plain: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = plain.recv(size - len(data))
        if not part:
            raise ConnectionError("the agent closed the connection")
        data += part
    return bytes(data)
