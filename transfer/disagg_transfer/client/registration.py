"""The first exchange with the agent: who this engine is, and the arena in return.

The arena comes as a file descriptor beside the answer and is mapped once; every view is a slice
of that mapping.
"""

import mmap
import os
import socket
import time
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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
    arena: memoryview


def connect(
    path: str,
    *,
    role: str,
    model: str,
    components: Sequence[Component],
    page_size: int,
    timeout_s: float,
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
        components=tuple(_registered(component) for component in components),
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _register(path, register, deadline - time.monotonic())
        except OSError as error:
            if time.monotonic() + _RETRY_S >= deadline:
                raise AgentUnavailableError(
                    f"no agent answered on {path} within {timeout_s:g} s: {error}"
                ) from error
        time.sleep(_RETRY_S)


def _register(path: str, register: Register, timeout_s: float) -> Connection:
    plain = socket.socket(socket.AF_UNIX)
    try:
        plain.settimeout(max(timeout_s, _RETRY_S))
        plain.connect(path)
        plain.sendall(frame(CALLS.encode(register)))
        arena = _receive_arena(plain)
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


def _receive_arena(plain: socket.socket) -> memoryview:
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
        if not isinstance(answer, Registered) or len(fds) != 2:
            raise WireError(f"the agent answered {type(answer).__name__} to Register")
        return _map_arena(fds[0], answer.arena_bytes, lifeline=fds[1])
    finally:
        for fd in fds:
            os.close(fd)


def _map_arena(arena: int, size: int, *, lifeline: int) -> memoryview:
    """Map it; `lifeline` is closed with the mapping, when the last view of it is gone.

    That tells the agent that nothing of this process writes there any more. At exit the kernel
    closes it: a thread may be writing until the very end.
    """
    mapping = mmap.mmap(arena, size)
    weakref.finalize(mapping, os.close, os.dup(lifeline)).atexit = False
    return memoryview(mapping)


def _receive(plain: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = plain.recv(size - len(data))
        if not part:
            raise ConnectionError("the agent closed the connection")
        data += part
    return bytes(data)
