"""The unix socket that the pod's engines register on, one for each rank of the pod.

A process that registers its rank again replaces itself; another process is refused while the first
one is connected, so that two engines started as one rank are told so instead of taking turns.

Only a process of the agent's own user may speak (the kernel says who it is), and the arena's
descriptor goes to it beside the answer to its registration.
"""

import asyncio
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from disagg_transfer.agent.engine import Engine
from disagg_transfer.agent.frames import Bounds, FrameStream, accepting
from disagg_transfer.agent.lifeline import Lifeline
from disagg_transfer.agent.memory import shown
from disagg_transfer.agent.ports import serve
from disagg_transfer.agent.pulse import Pulse
from disagg_transfer.agent.rank import Rank
from disagg_transfer.agent.relay import misuse
from disagg_transfer.codec import frame
from disagg_transfer.contract import ENV_RANK, ENV_RANKS, ENV_STATE_TYPES, Role
from disagg_transfer.engine_messages import (
    ANSWERS,
    CALLS,
    ENGINE_PROTOCOL,
    MAX_ENGINE_FRAME_BYTES,
    WORDS,
    Answer,
    Call,
    Refused,
    Register,
    Registered,
    Rejected,
    Word,
)
from disagg_transfer.errors import (
    RegistrationError,
    TransferFailed,
    UnknownStateTypeError,
    WireError,
)
from disagg_transfer.protocol import ComponentLayout, Fingerprint
from disagg_transfer.registry import lookup
from disagg_transfer.selection import Selection

MAX_CALLS: Final = 4096
_REGISTER_S: Final = 10.0
_VACATE_S: Final = 1.0  # for the kernel to tell of a connection whose process has ended
_FRAME: Final = Bounds(1, MAX_ENGINE_FRAME_BYTES)
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log = logging.getLogger(__name__)


class Registrar(Protocol):
    def engine_registered(self, rank: Rank, engine: Engine) -> None: ...

    def engine_lost(self, rank: Rank) -> None: ...

    def engine_refused(self, number: int, detail: str) -> None: ...


@dataclass(slots=True)
class _Seat:
    """The connection of the engine that a rank has, if it has one."""

    rank: Rank
    stream: FrameStream | None = None
    vacant: Pulse = field(default_factory=Pulse)


class EngineSocket:
    def __init__(
        self,
        *,
        role: Role,
        state_types: frozenset[str],
        ranks: Mapping[int, Rank],
        registrar: Registrar,
        refused: Callable[[str], None],
    ) -> None:
        self._refused = refused
        self._role, self._state_types = role, state_types
        self._seats = {number: _Seat(rank) for number, rank in ranks.items()}
        self._registrar = registrar
        self._epochs = itertools.count(1)
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self, path: Path) -> None:
        loop, sock = asyncio.get_running_loop(), bind_private(path)
        await serve(await loop.create_unix_server(accepting(self._accept), sock=sock))

    async def evict(self, rank: Rank) -> None:
        """Disconnect the engine of a rank, if there is one; return when it is gone."""
        seat = self._seats[rank.number]
        while seat.stream is not None:
            seat.stream.transport.abort()
            await seat.vacant.wait()

    async def _accept(self, stream: FrameStream) -> None:
        if not same_user(stream.transport):
            self._refused("user")
            stream.transport.abort()
            return
        try:
            async with asyncio.timeout(_REGISTER_S):
                register = _first(CALLS.decode(await stream.next(_FRAME)))
            parts, seat = self._examine(register), self._seat(register)
            await _enter(seat, register.instance)
        except RegistrationError as error:
            await self._reject(register, stream, error)
        except WireError as error:
            self._refused("protocol")
            self._not_understood(error)
            stream.transport.abort()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._refused("timeout" if isinstance(error, TimeoutError) else "protocol")
            _log.warning("an engine's connection ended unregistered: %s", error)
            stream.transport.abort()
        else:
            engine = self._engine(register, parts)
            await self._serve(register.call, seat, engine, stream)

    def _not_understood(self, error: WireError) -> None:
        """An engine of another release may speak so that no answer would reach it."""
        detail = (
            f"an engine's first words are none of engine protocol {ENGINE_PROTOCOL}: "
            f"{error!s:.512}; use engine and agent images of the same release"
        )
        _log.error("refused an engine: %s", detail)
        self._registrar.engine_refused(min(self._seats), detail)

    async def _reject(
        self, register: Register, stream: FrameStream, error: RegistrationError
    ) -> None:
        _log.error("refused an engine: %s", error)
        unknown = isinstance(error, UnknownStateTypeError)
        detail = str(error)[:2048]
        rejected = Rejected(call=register.call, unknown_state_type=unknown, detail=detail)
        self._registrar.engine_refused(register.rank, detail)
        stream.write(frame(ANSWERS.encode(rejected)))
        stream.transport.close()

    async def _serve(self, call: int, seat: _Seat, engine: Engine, stream: FrameStream) -> None:
        rank, seat.stream = seat.rank, stream
        try:
            _send_arena(call, rank, engine, stream.transport)
        finally:
            desk = rank.desk  # the one that has the arena it maps
            engine.lifeline.watch(lambda: desk.engine_unmapped(engine))
        self._registrar.engine_registered(rank, engine)
        try:
            await stream.each(_FRAME, lambda data: self._take(CALLS.decode(data), rank, stream))
        except asyncio.IncompleteReadError:
            _log.warning("the engine of rank %d closed its connection, or ended", rank.number)
        except (WireError, OSError) as error:
            _log.warning("engine connection ended: %s", error)
        finally:
            stream.transport.abort()
            seat.stream = None
            seat.vacant.fire()
            self._registrar.engine_lost(rank)

    def _take(self, call: Call | Word, rank: Rank, stream: FrameStream) -> None:
        if isinstance(call, WORDS):
            rank.desk.take(call)
            return
        if isinstance(call, Register):
            raise WireError("an engine registers once per connection")
        try:
            answer = rank.desk.answer_now(call)
            if answer is not None:
                _send(stream, answer)
            else:
                self._take_up(call, rank, stream)
        except WireError:
            raise  # that ends the connection
        except Exception as error:  # noqa: BLE001  (as in _answer)
            _send(stream, _refusal(call, error))

    def _take_up(self, call: Call, rank: Rank, stream: FrameStream) -> None:
        if len(self._answering) >= MAX_CALLS:
            raise WireError(f"{MAX_CALLS} calls are unanswered already")
        answers = rank.desk.answer(call, lambda answer: _send(stream, answer))
        task = asyncio.create_task(self._answer(call, answers, stream))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(
        self, call: Call, answers: Coroutine[Any, Any, None], stream: FrameStream
    ) -> None:
        try:
            await answers
        except Exception as error:  # noqa: BLE001  (a call's outermost guard: it must be answered)
            _send(stream, _refusal(call, error))

    def _examine(self, register: Register) -> dict[str, ComponentLayout]:
        if register.protocol != ENGINE_PROTOCOL:
            raise RegistrationError(
                f"protocol: the engine's client speaks {register.protocol}, this agent "
                f"{ENGINE_PROTOCOL}; use engine and agent images of the same release"
            )
        if register.role != self._role.value:
            raise RegistrationError(
                f"role: the engine is {register.role!r}, this pod is {self._role.value!r}"
            )
        parts = _parts(register)
        self._check_state_types({part.state_type for part in parts.values()})
        return parts

    def _engine(self, register: Register, parts: dict[str, ComponentLayout]) -> Engine:
        return Engine(
            epoch=next(self._epochs),
            instance=register.instance,
            lifeline=Lifeline(),
            parts=parts,
            fingerprint=Fingerprint(
                model=register.model,
                page_size=register.page_size,
                ranks=register.ranks,
                components=tuple(parts[name] for name in sorted(parts)),
            ),
        )

    def _seat(self, register: Register) -> _Seat:
        seat = self._seats.get(register.rank)
        if seat is None or register.rank >= register.ranks:
            held = ", ".join(map(str, self._seats))
            raise RegistrationError(
                f"rank: the engine is rank {register.rank} of {register.ranks}; this pod has "
                f"{held} ({ENV_RANK} * {ENV_RANKS} on). Start one engine rank for each GPU of it"
            )
        for other in self._seats.values():
            engine = other.rank.engine
            if engine is not None and engine.fingerprint.ranks != register.ranks:
                raise RegistrationError(
                    f"ranks: the engine of rank {register.rank} says that there are "
                    f"{register.ranks}, that of rank {other.rank.number} "
                    f"{engine.fingerprint.ranks}; start both with the same tensor parallelism"
                )
        return seat

    def _check_state_types(self, found: set[str]) -> None:
        nothing = Selection.NOTHING
        wanted = {name for name in self._state_types if lookup(name).selection is not nothing}
        has = {name for name in found if lookup(name).selection is not nothing}
        if self._state_types and has != wanted:
            raise RegistrationError(
                f"state types: the engine's components are of {', '.join(sorted(has))}; "
                f"spec.model.stateTypes ({ENV_STATE_TYPES}) says {', '.join(sorted(wanted))}. "
                "Correct the resource, or serve the model it describes"
            )


def _send(stream: FrameStream, answer: Answer) -> None:
    if not stream.transport.is_closing():
        stream.write(frame(ANSWERS.encode(answer)))


def _refusal(call: Call, error: Exception) -> Refused:
    if not isinstance(error, TransferFailed):
        _log.error("call %s failed", type(call).__name__, exc_info=error)
        error = misuse("the agent failed on this call; its log says why")
    return Refused(
        call=call.call,
        cause=error.cause,
        stage=error.stage,
        state_type=error.state_type,
        component=error.component,
        detail=error.detail[:2048],
        peer_pod=error.peer_pod,
    )


def _first(call: Call | Word) -> Register:
    if not isinstance(call, Register):
        raise WireError(f"{type(call).__name__} came before Register")
    return call


def _parts(register: Register) -> dict[str, ComponentLayout]:
    parts: dict[str, ComponentLayout] = {}
    for part in register.components:
        entry = lookup(part.state_type)
        empty = entry.selection is Selection.NOTHING
        if part.name in parts:
            raise RegistrationError(f"components: {part.name!r} is registered twice")
        if not part.item_bytes and not empty:
            raise RegistrationError(f"components[{part.name}].item_bytes: 0 is not positive")
        parts[part.name] = ComponentLayout(
            name=part.name,
            state_type=entry.name,
            type_version=entry.version,
            item_bytes=part.item_bytes,
            layers=part.layers,
            dtype=part.dtype,
            page_size=part.page_size,
        )
    if not parts:
        raise RegistrationError("components: none; register at least one")
    return parts


async def _enter(seat: _Seat, instance: str) -> None:
    """Return when the seat is empty, and its rank's lane not just being made anew."""
    while not seat.rank.open.is_set() or seat.stream is not None:
        await seat.rank.open.wait()
        await _vacate(seat, instance)


async def _vacate(seat: _Seat, instance: str) -> None:
    """Make room for an engine. An ended process's connection closes at once, if not yet."""
    if seat.stream is None:
        return
    sitting = seat.rank.engine
    if sitting is not None and sitting.instance == instance:
        seat.stream.transport.abort()
    try:
        async with asyncio.timeout(_VACATE_S):
            while seat.stream is not None:
                await seat.vacant.wait()
    except TimeoutError as error:
        raise RegistrationError(
            f"rank: another engine process is connected as rank {seat.rank.number}; "
            "start each engine process with a rank of its own, or end the other one"
        ) from error


def _send_arena(call: int, rank: Rank, engine: Engine, transport: asyncio.BaseTransport) -> None:
    """Nothing has been written yet, so the bytes may pass by the transport's buffer."""
    fds, gpu = shown(rank.memory)
    size, epoch = rank.memory.size, engine.epoch
    answer = Registered(call=call, arena_bytes=size, epoch=epoch, gpu=gpu)
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as plain:
        socket.send_fds(plain, [frame(ANSWERS.encode(answer))], [*fds, engine.lifeline.theirs])


def bind_private(path: Path) -> socket.socket:
    """A unix socket that only this user may open; one left by a dead agent is replaced."""
    path.unlink(missing_ok=True)
    plain = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        plain.bind(str(path))
    finally:
        os.umask(mask)
    return plain


def same_user(transport: asyncio.BaseTransport) -> bool:
    peer = transport.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.getuid():
        _log.warning("refused a connection of user %d; this agent is of %d", uid, os.getuid())
    return bool(uid == os.getuid())
