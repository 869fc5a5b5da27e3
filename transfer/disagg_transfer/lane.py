"""The thread that owns every NIXL call of one arena.

NIXL's default mode is not thread safe, and its software transports block in `post` for about the
whole copy; so one thread posts bounded pieces in turn, and deadlines live elsewhere. A read that
is abandoned posts no further piece, but its extent is settled only when the piece under way is in
a terminal state: NIXL cannot take bytes back.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from disagg_transfer.errors import FabricError, PeerDisconnectedError
from disagg_transfer.nixl_fabric import Fabric, Handle, Progress

PIECE_BYTES: Final = 8 << 20
_SPIN_S: Final = 200e-6
_NAP_S: Final = 200e-6


class ReadEvent(Enum):
    POSTED = "posted"  # the first piece is with NIXL
    DONE = "done"  # terminal: every byte is here
    FAILED = "failed"  # terminal: nothing moves any more
    SETTLED = "settled"  # terminal, after abandon


Listener = Callable[[ReadEvent, str], None]  # called on the lane's thread


@dataclass(slots=True, eq=False)
class Read:
    """One payload under way."""

    peer: str
    local: int
    remote: int
    nbytes: int
    listener: Listener
    position: int = 0
    handle: Handle | None = None
    abandoned: bool = False
    piece: int = field(default=0)


@dataclass(frozen=True, slots=True)
class _Call:
    peer: str
    action: Callable[[Fabric], None]
    finished: Callable[[FabricError | None], None]


class Lane:
    """Commands in by a queue, events out by callbacks."""

    def __init__(
        self, name: str, *, base: int, size: int, open_fabric: type[Fabric] = Fabric
    ) -> None:
        self._name, self._base, self._size = name, base, size
        self._open_fabric = open_fabric
        self._commands: queue.SimpleQueue[Read | _Call | None] = queue.SimpleQueue()
        self._active: deque[Read] = deque()
        self._calls: deque[_Call] = deque()
        self._started = threading.Event()
        self._fault: FabricError | None = None
        self._metadata = b""
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)

    def start(self, *, timeout_s: float) -> bytes:
        """Start the thread; returns the metadata that peers need."""
        self._thread.start()
        if not self._started.wait(timeout_s):
            raise FabricError(f"NIXL did not start within {timeout_s:.0f} s")
        if self._fault is not None:
            raise self._fault
        return self._metadata

    @property
    def name(self) -> str:
        return self._name

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, *, timeout_s: float) -> None:
        self._commands.put(None)
        self._thread.join(timeout_s)

    def add_peer(
        self, name: str, metadata: bytes, finished: Callable[[FabricError | None], None]
    ) -> None:
        self._commands.put(_Call(name, lambda fabric: fabric.add_peer(name, metadata), finished))

    def remove_peer(self, name: str, finished: Callable[[FabricError | None], None]) -> None:
        self._commands.put(_Call(name, lambda fabric: fabric.remove_peer(name), finished))

    def read(self, peer: str, *, local: int, remote: int, nbytes: int, listener: Listener) -> Read:
        read = Read(peer, local, remote, nbytes, listener)
        self._commands.put(read)
        return read

    def abandon(self, read: Read) -> None:
        """No further piece; SETTLED follows unless a terminal event has been sent already."""
        read.abandoned = True  # one flag, read by the lane before each piece

    def _run(self) -> None:
        try:
            fabric = self._open_fabric(self._name, base=self._base, size=self._size)
            self._metadata = fabric.metadata
        except FabricError as error:
            self._fault = error
            return
        finally:
            self._started.set()
        idle_since = time.monotonic()
        while self._take_commands(fabric):
            if self._turn(fabric):
                idle_since = time.monotonic()
            elif self._active and time.monotonic() - idle_since > _SPIN_S:
                time.sleep(_NAP_S)

    def _take_commands(self, fabric: Fabric) -> bool:
        """Take what has come in; wait for it when nothing is under way. False ends the lane."""
        wait = not self._active and not self._calls
        while wait or not self._commands.empty():
            command = self._commands.get()
            wait = False
            if command is None:
                return False
            if isinstance(command, Read):
                self._active.append(command)
            else:
                self._calls.append(command)
        self._answer_calls(fabric)
        return True

    def _answer_calls(self, fabric: Fabric) -> None:
        """A peer is loaded or removed only while no read of it is under way; in order per peer."""
        busy = {read.peer for read in self._active}
        for _ in range(len(self._calls)):
            call = self._calls.popleft()
            if call.peer in busy:
                self._calls.append(call)
            else:
                _answer(call, fabric)

    def _turn(self, fabric: Fabric) -> bool:
        """One look at every read under way; whether anything moved."""
        moved = False
        for _ in range(len(self._active)):
            read = self._active.popleft()
            before = (read.position, read.handle)
            if not self._advance(fabric, read):
                self._active.append(read)
            moved |= before != (read.position, read.handle)
        return moved

    def _advance(self, fabric: Fabric, read: Read) -> bool:
        """Poll or post one piece; True when the read is in a terminal state."""
        try:
            if read.handle is not None:
                if fabric.poll(read.handle) is Progress.ACTIVE:
                    return False
                self._finish_piece(fabric, read)
            if read.abandoned:
                read.listener(ReadEvent.SETTLED, "")
                return True
            if read.position == read.nbytes:
                read.listener(ReadEvent.DONE, "")
                return True
            self._post_piece(fabric, read)
        except FabricError as error:
            self._fail(fabric, read, error)
            return True
        return False

    def _post_piece(self, fabric: Fabric, read: Read) -> None:
        read.piece = min(PIECE_BYTES, read.nbytes - read.position)
        read.handle = fabric.read(
            read.peer,
            local=read.local + read.position,
            remote=read.remote + read.position,
            nbytes=read.piece,
        )
        if read.position == 0:
            read.listener(ReadEvent.POSTED, "")
        if fabric.post(read.handle) is Progress.DONE:
            self._finish_piece(fabric, read)

    def _finish_piece(self, fabric: Fabric, read: Read) -> None:
        handle, read.handle = read.handle, None
        read.position += read.piece
        if handle is not None:
            fabric.release(handle)

    def _fail(self, fabric: Fabric, read: Read, error: FabricError) -> None:
        if read.handle is not None:
            # An error is terminal for the handle; one NIXL refuses to release moves nothing more.
            with contextlib.suppress(FabricError):
                fabric.release(read.handle)
            read.handle = None
        lost = "lost: " if isinstance(error, PeerDisconnectedError) else ""
        read.listener(ReadEvent.SETTLED if read.abandoned else ReadEvent.FAILED, f"{lost}{error}")


def _answer(call: _Call, fabric: Fabric) -> None:
    try:
        call.action(fabric)
    except FabricError as error:
        call.finished(error)
    else:
        call.finished(None)
