"""The blocking client: one socket to the agent, any number of threads calling.

A reader thread hands each answer to the thread that waits for it. The arena arrives as a file
descriptor beside the registration's answer and is mapped once; views are slices of that mapping.
"""

import contextlib
import itertools
import mmap
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from disagg_transfer.client.values import Arrival, Component, Extent, Payload
from disagg_transfer.codec import LENGTH, frame
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.engine_messages import (
    ANSWERS,
    CALLS,
    ENGINE_PROTOCOL,
    MAX_ENGINE_FRAME_BYTES,
    Abort,
    Arrived,
    AwaitRelease,
    Begin,
    OfferPayload,
    Pull,
    Refuse,
    Refused,
    Register,
    Registered,
    RegisteredComponent,
    Rejected,
    ReleaseRoom,
    Reserve,
    Reserved,
)
from disagg_transfer.errors import (
    AgentUnavailableError,
    ArenaFull,
    RegistrationError,
    TransferFailed,
    UnknownStateTypeError,
    WireError,
)

_RETRY_S: Final = 0.05
# Names this process: two registrations of one engine are told from two engines.
_INSTANCE: Final = uuid.uuid4().hex


class AgentClient:
    """A registered engine; when the agent goes, `lost` is set and `connect` has to be called again.

    Every pending call then raises TransferFailed with cause EngineLost.
    """

    def __init__(self, plain: socket.socket, *, arena: memoryview) -> None:
        self.lost = threading.Event()
        self._socket, self._arena = plain, arena
        self._calls = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._reader = threading.Thread(target=self._read, name="agent-client", daemon=True)
        self._reader.start()

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
                return cls._register(socket_path, register, deadline - time.monotonic())
            except OSError as error:
                if time.monotonic() + _RETRY_S >= deadline:
                    raise AgentUnavailableError(
                        f"no agent answered on {socket_path} within {timeout_s:g} s: {error}"
                    ) from error
            time.sleep(_RETRY_S)

    @classmethod
    def _register(cls, path: str, register: Register, timeout_s: float) -> "AgentClient":
        plain = socket.socket(socket.AF_UNIX)
        try:
            plain.settimeout(max(timeout_s, _RETRY_S))
            plain.connect(path)
            plain.sendall(frame(CALLS.encode(register)))
            arena = _receive_arena(plain)
            plain.settimeout(None)
            return cls(plain, arena=arena)
        except BaseException:
            plain.close()
            raise

    def begin(self, room: int) -> None:
        """Prefill starts on this room; TransferFailed when the room is in flight or given up."""
        self._call(Begin(call=next(self._calls), room=room))

    def reserve(self, room: int, nbytes: int, *, timeout_s: float) -> Extent:
        """Arena memory for one payload; ArenaFull when none is free in time."""
        call = Reserve(
            call=next(self._calls), room=room, nbytes=nbytes, timeout_ms=int(timeout_s * 1000)
        )
        answer: Reserved = self._call(call)
        view = self._arena[answer.offset : answer.offset + answer.nbytes]
        return Extent(extent=answer.extent, room=room, nbytes=answer.nbytes, view=view)

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
        self._call(
            OfferPayload(
                call=next(self._calls),
                room=room,
                component=component,
                extent=extent.extent,
                items=items,
                last=last,
                aux=aux,
            )
        )

    def wait_released(self, room: int, timeout_s: float) -> None:
        """Return when decode has taken everything; TransferFailed otherwise."""
        self._call(
            AwaitRelease(call=next(self._calls), room=room, timeout_ms=int(timeout_s * 1000))
        )

    def abort(self, room: int, detail: str) -> None:
        """Give the room up on either role; the peer is told. No view of it is touched after."""
        self._call(Abort(call=next(self._calls), room=room, detail=detail[:2048]))

    def refuse(self, room: int, *, detail: str, peer: str = "") -> None:
        """Say that this engine will neither begin nor pull the room; the peer is told at once.

        Decode names its `peer` as for pull. A room that is in flight here stays as it is: the
        refused request was another one of the same number.
        """
        self._call(Refuse(call=next(self._calls), room=room, peer=peer, detail=detail[:2048]))

    def pull(self, room: int, *, peer: str, expect: Mapping[str, int]) -> Arrival:
        """Wait for every component of the room, whole; `peer` is bootstrap_host:bootstrap_port."""
        call = Pull(call=next(self._calls), room=room, peer=peer, expect=dict(expect))
        answer: Arrived = self._call(call)
        return Arrival(
            payloads={
                part.component: Payload(
                    items=part.items,
                    view=self._arena[part.offset : part.offset + part.nbytes],
                )
                for part in answer.payloads
            },
            aux=answer.aux,
            prefill_pod=answer.prefill_pod,
        )

    def release(self, room: int) -> None:
        """The payloads are scattered. TransferFailed here means that they must not be used."""
        self._call(ReleaseRoom(call=next(self._calls), room=room))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._socket.close()
        self._arena = memoryview(b"")  # this client's part in the mapping ends; views have theirs

    def _call(self, message: Any) -> Any:
        encoded = frame(CALLS.encode(message))
        CALLS.decode(memoryview(encoded)[LENGTH.size :])  # a bad argument fails here, by name
        answer: Future[Any] = Future()
        with self._lock:
            if self.lost.is_set():
                raise _agent_gone()
            self._pending[message.call] = answer
            try:
                self._socket.sendall(encoded)
            except OSError as error:
                del self._pending[message.call]
                raise _agent_gone() from error
        result = answer.result()
        if isinstance(result, Refused):
            raise _failure(result)
        return result

    def _read(self) -> None:
        try:
            while True:
                answer = ANSWERS.decode(_receive_frame(self._socket))
                with self._lock:
                    waiting = self._pending.pop(answer.call, None)
                if waiting is not None:
                    waiting.set_result(answer)
        except (OSError, WireError):
            with self._lock:
                self.lost.set()
                pending, self._pending = self._pending, {}
            for waiting in pending.values():
                waiting.set_exception(_agent_gone())


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
        answer = ANSWERS.decode(_receive(plain, _length(head)))
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


def _receive_frame(plain: socket.socket) -> bytes:
    return _receive(plain, _length(_receive(plain, LENGTH.size)))


def _length(head: bytes) -> int:
    (length,) = LENGTH.unpack(head)
    if length > MAX_ENGINE_FRAME_BYTES:
        raise WireError(f"frame of {length} bytes; at most {MAX_ENGINE_FRAME_BYTES}")
    return int(length)


def _receive(plain: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = plain.recv(size - len(data))
        if not part:
            raise ConnectionError("the agent closed the connection")
        data += part
    return bytes(data)


def _failure(refused: Refused) -> TransferFailed:
    kind = ArenaFull if refused.cause is Cause.ARENA_FULL else TransferFailed
    return kind(
        refused.cause,
        stage=refused.stage,
        state_type=refused.state_type,
        component=refused.component,
        detail=refused.detail,
        peer_pod=refused.peer_pod,
    )


def _agent_gone() -> TransferFailed:
    return TransferFailed(
        Cause.ENGINE_LOST,
        stage=Stage.BOOTSTRAP,
        detail="this engine's connection to its agent is gone; connect again",
    )
