"""A man in the middle of the control connection, for fault injection only.

Decode's agent dials it as if it were prefill's. Frames pass unchanged until one is to be corrupted;
it knows where a frame ends and nothing of what is in it.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LENGTH: Final = struct.Struct("!I")
CONNECT_S: Final = 5.0
_MAX_FRAME_BYTES: Final = 8 << 20


class Corruption(StrEnum):
    FLIP = "flip"  # one bit, the length included
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"  # behind the next frame
    TRUNCATE = "truncate"  # the frame ends early, the next one follows
    STALL = "stall"  # nothing more passes for a while; no frame is harmed
    SEVER = "sever"  # the connection ends


class Direction(StrEnum):
    TO_PREFILL = "toPrefill"
    TO_DECODE = "toDecode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """What happens to the frame that comes after `after` others in this direction."""

    corruption: Corruption
    direction: Direction
    after: int
    bit: int  # which bit is flipped, or where the frame is cut: modulo the frame's length
    stall_s: float = 0.0


def corrupted(frame: bytes, blow: Blow) -> bytes:
    """What of a frame passes, for the kinds that change a frame and not its place or time."""
    match blow.corruption:
        case Corruption.FLIP:
            place, bit = divmod(blow.bit % (8 * len(frame)), 8)
            return frame[:place] + bytes([frame[place] ^ 1 << bit]) + frame[place + 1 :]
        case Corruption.DROP:
            return b""
        case Corruption.DUPLICATE:
            return frame + frame
        case Corruption.TRUNCATE:
            return frame[: 1 + blow.bit % (len(frame) - 1)]
    return frame


class FaultyRelay:
    """One listening socket; every connection to it is passed on to what `connect` opens."""

    def __init__(self, listener: socket.socket, *, connect: Callable[[], socket.socket]) -> None:
        self.port: int = listener.getsockname()[1]
        self._listener, self._connect = listener, connect
        self._blows: dict[Direction, Blow] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    def strike(self, blow: Blow) -> None:
        with self._lock:
            self._blows[blow.direction] = blow

    def lift(self) -> None:
        with self._lock:
            self._blows.clear()

    def close(self) -> None:
        self._closed.set()
        _shut(self._listener)
        with self._lock:
            sockets = list(self._open)
        for plain in sockets:
            _shut(plain)
        self._thread.join(CONNECT_S)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            far = self._connect()
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self._open |= {near, far}
        back = threading.Thread(
            target=self._pump, args=(far, near, Direction.TO_DECODE), daemon=True
        )
        back.start()
        self._pump(near, far, Direction.TO_PREFILL)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        """Until either end closes; the other is then closed too."""
        held = b""
        try:
            while True:
                frame = _read_frame(source)
                blow = self._due(direction)
                if blow is not None and blow.corruption is Corruption.SEVER:
                    return
                if blow is not None and blow.corruption is Corruption.REORDER:
                    held = frame
                    continue
                if blow is not None and blow.corruption is Corruption.STALL:
                    self._closed.wait(blow.stall_s)
                sink.sendall((frame if blow is None else corrupted(frame, blow)) + held)
                held = b""
        except OSError:
            pass  # an end of the connection is what it is for
        finally:
            _shut(source)
            _shut(sink)

    def _due(self, direction: Direction) -> Blow | None:
        """The blow that strikes this frame, if it is one's turn."""
        with self._lock:
            blow = self._blows.pop(direction, None)
            if blow is None or not blow.after:
                return blow
            self._blows[direction] = Blow(
                corruption=blow.corruption,
                direction=direction,
                after=blow.after - 1,
                bit=blow.bit,
                stall_s=blow.stall_s,
            )
            return None


def _read_frame(source: socket.socket) -> bytes:
    head = _read(source, LENGTH.size)
    (length,) = LENGTH.unpack(head)
    if length > _MAX_FRAME_BYTES:
        raise ConnectionError(f"frame of {length} bytes")
    return head + _read(source, length)


def _read(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return bytes(data)


def _shut(plain: socket.socket) -> None:
    with contextlib.suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)
