"""The blocking transport: one socket, a reader thread that hands each answer to who waits for it."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from disagg_transfer.client.conversation import Ask, Frames, agent_gone, is_last
from disagg_transfer.errors import WireError

_READ_BYTES: Final = 1 << 16
T = TypeVar("T")


class Line:
    def __init__(self, plain: socket.socket) -> None:
        self.lost = threading.Event()
        self._socket = plain
        self._lock = threading.Lock()
        self._pending: dict[int, Callable[[Any], None]] = {}  # by call: where its answers go
        self._reader = threading.Thread(target=self._read, name="agent-client", daemon=True)
        self._reader.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._socket.close()

    def ask(self, ask: Ask[T]) -> T:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.open(ask.call, ask.frame, answers.put)
        return ask.answered(answers.get())

    def open(self, call: int, opening: bytes, put: Callable[[Any], None]) -> None:
        with self._lock:
            self._pending[call] = put
        self.send(opening)

    def send(self, data: bytes) -> None:
        with self._lock:
            if self.lost.is_set():
                raise agent_gone()
            try:
                self._socket.sendall(data)
            except OSError as error:
                raise agent_gone() from error

    def _read(self) -> None:
        frames = Frames()
        try:
            while data := self._socket.recv(_READ_BYTES):
                for answer in frames.feed(data):
                    self._pass_on(answer)
        except (OSError, WireError):
            pass
        with self._lock:
            self.lost.set()
            pending, self._pending = self._pending, {}
        for put in pending.values():
            put(agent_gone())

    def _pass_on(self, answer: Any) -> None:
        with self._lock:
            put = self._pending.get(answer.call)
            if is_last(answer):
                self._pending.pop(answer.call, None)
        if put is not None:
            put(answer)
