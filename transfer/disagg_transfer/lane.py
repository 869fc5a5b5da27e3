"""The thread that owns every NIXL call of one arena.

NIXL's default mode is not thread safe, and its software transports block in `post` for about the
whole copy; so one thread posts bounded pieces, and deadlines live elsewhere. Per peer a few pieces
are under way at a time, the reads of a peer take turns by piece, and a small read passes the large
ones: it waits for what is under way, never for whole payloads. A read that is abandoned posts no
further piece, but its extent is settled only when its pieces under way are in a terminal state:
NIXL cannot take bytes back.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from disagg_transfer.errors import FabricError, PeerDisconnectedError
from disagg_transfer.nixl_fabric import Fabric, Progress
from disagg_transfer.reads import LOST, WINDOW_BYTES, Listener, PeerReads, Piece, Read, ReadEvent
from disagg_transfer.ucx import UcxSettings

__all__ = ["Lane", "Listener", "Read", "ReadEvent"]

_SPIN_S: Final = 200e-6
_NAP_S: Final = 200e-6
# A name that is loaded again right after its removal may meet its old connection's reset
# (ai-dynamo/nixl#2109). Only a peer that lost its session and kept its process comes back so.
RELOAD_PAUSE_S: Final = 0.1


class OpenFabric(Protocol):
    def __call__(
        self, name: str, *, base: int, size: int, ucx: UcxSettings, passive: bool
    ) -> Fabric: ...


@dataclass(frozen=True, slots=True)
class _Call:
    peer: str
    action: Callable[[Fabric], None]
    finished: Callable[[FabricError | None], None]
    removes: bool


class Lane:
    """Commands in by a queue, events out by callbacks."""

    def __init__(
        self,
        name: str,
        *,
        base: int,
        size: int,
        ucx: UcxSettings,
        passive: bool,
        open_fabric: OpenFabric = Fabric,
    ) -> None:
        """`passive`: others read from this arena."""
        self._name = name
        self._ucx = ucx
        self._open = partial(open_fabric, name, base=base, size=size, ucx=ucx, passive=passive)
        self._commands: queue.SimpleQueue[Read | _Call | None] = queue.SimpleQueue()
        self._queues: dict[str, PeerReads] = {}  # of peers with a read under way
        self._calls: deque[_Call] = deque()
        self._removed: dict[str, float] = {}  # peers removed just now, and when
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

    @property
    def busy(self) -> bool:
        """Whether a read may be under way."""
        return bool(self._queues) or not self._commands.empty()

    def sibling(self, name: str, *, base: int, size: int) -> "Lane":
        """A lane of the same transport that reads into other host memory, to be started."""
        return Lane(name, base=base, size=size, ucx=self._ucx, passive=False)

    def close(self, *, timeout_s: float) -> None:
        self._commands.put(None)
        self._thread.join(timeout_s)

    def add_peer(
        self, name: str, metadata: bytes, finished: Callable[[FabricError | None], None]
    ) -> None:
        self._commands.put(
            _Call(name, lambda fabric: fabric.add_peer(name, metadata), finished, removes=False)
        )

    def remove_peer(self, name: str, finished: Callable[[FabricError | None], None]) -> None:
        self._commands.put(
            _Call(name, lambda fabric: fabric.remove_peer(name), finished, removes=True)
        )

    def read(self, peer: str, *, local: int, remote: int, nbytes: int, listener: Listener) -> Read:
        read = Read(peer, local, remote, nbytes, listener)
        self._commands.put(read)
        return read

    def estimate(
        self,
        peer: str,
        *,
        local: int,
        remote: int,
        nbytes: int,
        finished: Callable[[int | FabricError], None],
    ) -> None:
        """What UCX thinks a read takes, in microseconds, once no read of the peer is under way."""
        found: list[int] = []

        def action(fabric: Fabric) -> None:
            found.append(fabric.estimate(peer, local=local, remote=remote, nbytes=nbytes))

        self._commands.put(
            _Call(peer, action, lambda error: finished(error or found[0]), removes=False)
        )

    def abandon(self, read: Read) -> None:
        """No further piece; SETTLED follows unless a terminal event has been sent already."""
        read.abandoned = True  # one flag, read by the lane before each piece

    def _run(self) -> None:
        try:
            fabric = self._open()
            self._metadata = fabric.metadata
        except FabricError as error:
            self._fault = error
            return
        finally:
            self._started.set()
        moved_at = time.monotonic()
        while self._take_commands(fabric):
            if self._turn(fabric):
                moved_at = time.monotonic()
            elif not self._hurried or time.monotonic() - moved_at > _SPIN_S:
                time.sleep(_NAP_S)

    @property
    def _hurried(self) -> bool:
        """Whether a small read is under way, whose time is latency; the rest is throughput."""
        return any(piece.read.small for reads in self._queues.values() for piece in reads.pieces)

    def _take_commands(self, fabric: Fabric) -> bool:
        """Take what has come in; wait for it when nothing is under way. False ends the lane."""
        wait = not self._queues and not self._calls
        while wait or not self._commands.empty():
            command = self._commands.get()
            wait = False
            if command is None:
                return False
            if isinstance(command, Read):
                self._queues.setdefault(command.peer, PeerReads()).add(command)
            else:
                self._calls.append(command)
        self._answer_calls(fabric)
        return True

    def _answer_calls(self, fabric: Fabric) -> None:
        """A peer is loaded or removed only while no read of it is under way; in order per peer."""
        if not self._calls:
            return
        now = time.monotonic()
        self._removed = {
            peer: at for peer, at in self._removed.items() if now - at < RELOAD_PAUSE_S
        }
        waiting = {*self._queues, *self._removed}
        calls, self._calls = self._calls, deque()
        for call in calls:
            if call.peer in waiting:
                self._calls.append(call)
                continue
            _answer(call, fabric)
            if call.removes:
                self._removed[call.peer] = now
                waiting.add(call.peer)

    def _turn(self, fabric: Fabric) -> bool:
        """One look at every peer's reads; whether anything moved."""
        moved = False
        for peer, reads in list(self._queues.items()):
            moved |= _poll_pieces(fabric, reads)
            moved |= _tell_ended(reads)  # before posting, which may take as long as a piece
            moved |= _post_pieces(fabric, reads)
            moved |= _tell_ended(reads)
            _tell_posted(reads)
            if not reads.reads:
                del self._queues[peer]
        return moved


def _poll_pieces(fabric: Fabric, reads: PeerReads) -> bool:
    pieces, reads.pieces = reads.pieces, []
    for piece in pieces:
        try:
            active = fabric.poll(piece.handle) is Progress.ACTIVE
        except FabricError as error:
            _end_piece(fabric, piece, error)
        else:
            if active:
                reads.pieces.append(piece)
            else:
                _end_piece(fabric, piece, None)
    return len(reads.pieces) < len(pieces)


def _post_pieces(fabric: Fabric, reads: PeerReads) -> bool:
    """At most a window's worth: transports that block in `post` would let nobody else in."""
    posted = 0
    while posted < WINDOW_BYTES:
        read = reads.next()
        if read is None:
            break
        posted += _post_piece(fabric, reads, read)
    return posted > 0


def _post_piece(fabric: Fabric, reads: PeerReads, read: Read) -> int:
    nbytes = read.next_bytes
    first = read.position == 0
    try:
        handle = fabric.read(
            read.peer,
            local=read.local + read.position,
            remote=read.remote + read.position,
            nbytes=nbytes,
        )
    except FabricError as error:
        read.fault = error
        return nbytes
    piece = Piece(read, handle, nbytes)
    read.position += nbytes
    read.pieces += 1
    if first:
        read.posted_at = time.monotonic()
        if not read.small:  # posting it may take as long as the piece
            _tell(read)
    try:
        if fabric.post(handle) is Progress.DONE:
            _end_piece(fabric, piece, None)
        else:
            reads.pieces.append(piece)
    except FabricError as error:
        _end_piece(fabric, piece, error)
    reads.line_up(read)
    return nbytes


def _end_piece(fabric: Fabric, piece: Piece, error: FabricError | None) -> None:
    piece.read.pieces -= 1
    piece.read.fault = piece.read.fault or error
    # An error is terminal for the handle; one NIXL refuses to release moves nothing more.
    with contextlib.suppress(FabricError):
        fabric.release(piece.handle)


def _tell_posted(reads: PeerReads) -> None:
    """Most small reads have ended by then: that is one event to take in on their way, not two."""
    now = time.monotonic()
    for piece in reads.pieces:
        if not piece.read.told and now - piece.read.posted_at > _SPIN_S:
            _tell(piece.read)


def _tell(read: Read) -> None:
    read.told = True
    read.listener(ReadEvent.POSTED, "")


def _tell_ended(reads: PeerReads) -> bool:
    ended = reads.take_ended()
    for read in ended:
        lost = LOST if isinstance(read.fault, PeerDisconnectedError) else ""
        if read.abandoned:
            read.listener(ReadEvent.SETTLED, f"{lost}{read.fault or ''}")
        elif read.fault is not None:
            read.listener(ReadEvent.FAILED, f"{lost}{read.fault}")
        else:
            read.listener(ReadEvent.DONE, "")
    return bool(ended)


def _answer(call: _Call, fabric: Fabric) -> None:
    try:
        call.action(fabric)
    except FabricError as error:
        call.finished(error)
    else:
        call.finished(None)
